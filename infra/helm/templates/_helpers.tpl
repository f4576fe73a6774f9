{{- /* Names, labels, and what each role needs. A role is a dict: service, role, spec (its values), root. */ -}}

{{- define "hearback.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "hearback.roleName" -}}
{{ include "hearback.name" .root }}-{{ .service }}-{{ .role }}
{{- end -}}

{{- define "hearback.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .service }}-{{ .role }}
{{- end -}}

{{- define "hearback.labels" -}}
{{ include "hearback.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end -}}

{{- /* Whether the stand-in for providers is one: only then it runs. */ -}}
{{- define "hearback.mailbox" -}}
{{- if or (eq .Values.mail.provider "mailbox") (eq .Values.sms.provider "mailbox") }}yes{{ end -}}
{{- end -}}

{{- /* Every role there is, as YAML: a list of {service, role}. */ -}}
{{- define "hearback.roles" -}}
{{- range $service, $roles := .Values.roles -}}
{{- if or (ne $service "mailbox") (include "hearback.mailbox" $) -}}
{{- range $role, $spec := $roles }}
- {service: {{ $service }}, role: {{ $role }}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The database of a service; the mailbox lies where the embedded log would be. */ -}}
{{- define "hearback.database" -}}
{{ ternary "log" . (eq . "mailbox") }}
{{- end -}}

{{- /* The topics that a service's consumer reads. */ -}}
{{- define "hearback.topics" -}}
{{- $topics := dict
      "survey" (list "tasks" "changes" "notices" "staff")
      "followup" (list "settings" "customers" "invitations" "responses" "deliveries")
      "reporting" (list "settings" "customers" "invitations" "responses" "deliveries" "tasks" "changes" "notices" "staff") -}}
{{- get $topics . | toJson -}}
{{- end -}}

{{- define "hearback.publicUrl" -}}
{{ required "publicUrl is not set: give the address that customers, staff and providers reach, such as https://feedback.example.com." .Values.publicUrl }}
{{- end -}}

{{- define "hearback.bootstrap" -}}
{{- $ports := .Values.kafka.ports | join "," | splitList "," -}}
{{- range splitList "," .Values.kafka.bootstrap -}}
{{- with regexFind "[0-9]+$" . -}}
{{- if not (has . $ports) -}}
{{- fail (printf "kafka.bootstrap names port %s, which kafka.ports lacks: the network policies would keep the roles from it." .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ required "kafka.bootstrap is not set: give the brokers' addresses, such as kafka-1.example.com:9092,kafka-2.example.com:9092." .Values.kafka.bootstrap }}
{{- end -}}

{{- define "hearback.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- /* One variable from a Secret: a dict of name, secret, key. */ -}}
{{- define "hearback.fromSecret" -}}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ .secret | quote }}, key: {{ .key | quote }}}}
{{- end -}}

{{- define "hearback.env.common" -}}
- {name: HEARBACK_HOME, value: /tmp/hearback}
- {name: HEARBACK_HOST, value: "0.0.0.0"}
- {name: HEARBACK_PORT, value: "8080"}
- {name: HEARBACK_PUBLIC_URL, value: {{ include "hearback.publicUrl" . | quote }}}
- {name: HEARBACK_LOG, value: kafka}
- {name: HEARBACK_KAFKA_BOOTSTRAP, value: {{ include "hearback.bootstrap" . | quote }}}
{{ include "hearback.fromSecret" (dict "name" "HEARBACK_SECRET" "secret" .Values.secret.name "key" .Values.secret.key) }}
{{- with .Values.secret.previousKey }}
{{ include "hearback.fromSecret" (dict "name" "HEARBACK_PREVIOUS_SECRET" "secret" $.Values.secret.name "key" .) }}
{{- end }}
{{- end -}}

{{- /* What it takes to speak with the brokers, besides their address. */ -}}
{{- define "hearback.env.kafka" -}}
{{- with .Values.kafka }}
- {name: HEARBACK_KAFKA_SECURITY, value: {{ .security }}}
- {name: HEARBACK_KAFKA_POLL_SECONDS, value: {{ .pollSeconds | quote }}}
{{- with .prefix }}
- {name: HEARBACK_KAFKA_PREFIX, value: {{ . | quote }}}
{{- end }}
{{- if hasPrefix "sasl" .security }}
{{- $secret := required "kafka.saslSecret.name is not set, and kafka.security asks for a login." .saslSecret.name }}
- {name: HEARBACK_KAFKA_SASL_MECHANISM, value: {{ .saslMechanism }}}
{{ include "hearback.fromSecret" (dict "name" "HEARBACK_KAFKA_USER" "secret" $secret "key" .saslSecret.userKey) }}
{{ include "hearback.fromSecret" (dict "name" "HEARBACK_KAFKA_PASSWORD" "secret" $secret "key" .saslSecret.passwordKey) }}
{{- end }}
{{- if .caSecret.name }}
{{ include "hearback.fromSecret" (dict "name" "HEARBACK_KAFKA_CA" "secret" .caSecret.name "key" .caSecret.key) }}
{{- end }}
{{- if .clientSecret.name }}
{{ include "hearback.fromSecret" (dict "name" "HEARBACK_KAFKA_CERTIFICATE" "secret" .clientSecret.name "key" .clientSecret.certificateKey) }}
{{ include "hearback.fromSecret" (dict "name" "HEARBACK_KAFKA_KEY" "secret" .clientSecret.name "key" .clientSecret.keyKey) }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "hearback.env.providers" -}}
{{- $v := .Values }}
- {name: HEARBACK_MAIL, value: {{ $v.mail.provider }}}
- {name: HEARBACK_SMS, value: {{ $v.sms.provider }}}
{{- if include "hearback.mailbox" . }}
- {name: HEARBACK_MAILBOX_URL, value: "http://{{ include "hearback.name" . }}-mailbox-web:8080"}
{{- end }}
{{- if eq $v.mail.provider "sendgrid" }}
{{- with $v.mail.sendgrid }}
{{ include "hearback.fromSecret" (dict "name" "SENDGRID_API_KEY" "secret" .secret.name "key" .secret.apiKeyKey) }}
{{ include "hearback.fromSecret" (dict "name" "SENDGRID_WEBHOOK_PUBLIC_KEY" "secret" .secret.name "key" .secret.webhookPublicKeyKey) }}
{{- with .url }}
- {name: SENDGRID_API_URL, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- if eq $v.mail.provider "smtp" }}
{{- with $v.mail.smtp }}
- {name: SMTP_HOST, value: {{ required "mail.smtp.host is not set, and mail.provider is smtp." .host | quote }}}
- {name: SMTP_PORT, value: {{ .port | quote }}}
- {name: SMTP_TLS, value: {{ .tls | quote }}}
{{- if .secret.name }}
{{ include "hearback.fromSecret" (dict "name" "SMTP_USER" "secret" .secret.name "key" .secret.userKey) }}
{{ include "hearback.fromSecret" (dict "name" "SMTP_PASSWORD" "secret" .secret.name "key" .secret.passwordKey) }}
{{- end }}
{{- end }}
{{- end }}
{{- if eq $v.sms.provider "twilio" }}
{{- with $v.sms.twilio }}
{{- if eq (empty .from) (empty .messagingServiceSid) }}
{{- fail "sms.twilio needs one of from and messagingServiceSid: texts leave from one of them." }}
{{- end }}
{{ include "hearback.fromSecret" (dict "name" "TWILIO_ACCOUNT_SID" "secret" .secret.name "key" .secret.accountSidKey) }}
{{ include "hearback.fromSecret" (dict "name" "TWILIO_AUTH_TOKEN" "secret" .secret.name "key" .secret.authTokenKey) }}
{{- if .secret.apiKeyKey }}
{{ include "hearback.fromSecret" (dict "name" "TWILIO_API_KEY" "secret" .secret.name "key" .secret.apiKeyKey) }}
{{ include "hearback.fromSecret" (dict "name" "TWILIO_API_SECRET" "secret" .secret.name "key" (required "sms.twilio.secret.apiSecretKey: an API key has a secret" .secret.apiSecretKey)) }}
{{- end }}
{{- with .from }}
- {name: TWILIO_FROM, value: {{ . | quote }}}
{{- end }}
{{- with .messagingServiceSid }}
- {name: TWILIO_MESSAGING_SERVICE_SID, value: {{ . | quote }}}
{{- end }}
{{- with .url }}
- {name: TWILIO_API_URL, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- with $v.extraCaSecret }}
{{- if .name }}
{{ include "hearback.fromSecret" (dict "name" "HEARBACK_EXTRA_CA" "secret" .name "key" .key) }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The variables of a role: what it needs, and no more. */ -}}
{{- define "hearback.env" -}}
{{- $name := include "hearback.name" .root -}}
{{- $database := include "hearback.database" .service -}}
{{- $where := get .root.Values.databases $database -}}
{{ include "hearback.env.common" .root }}
{{ include "hearback.fromSecret" (dict "name" (printf "HEARBACK_%s_DATABASE_URL" (upper $database)) "secret" $where.secret.name "key" $where.secret.key) }}
{{- if eq .role "web" }}
- {name: HEARBACK_TRUSTED_PROXIES, value: {{ .root.Values.ingress.proxies | quote }}}
{{- end }}
- {name: HEARBACK_HEALTH_PORT, value: "8081"}
{{- if and (has .role (list "web" "relay" "consumer")) (ne .service "mailbox") }}
{{- include "hearback.env.kafka" .root }}
{{- end }}
{{- if or (eq .role "sender") (and (eq .role "web") (eq .service "survey")) (eq .service "mailbox") }}
{{- include "hearback.env.providers" .root }}
{{- else if and (eq .role "web") (not (include "hearback.mailbox" .root)) }}
- {name: HEARBACK_MAILBOX_URL, value: none}
{{- end }}
{{- if or (and (eq .service "followup") (eq .role "sender")) (and (eq .role "web") (has .service (list "reporting" "mailbox"))) }}
- {name: HEARBACK_SURVEY_URL, value: "http://{{ $name }}-survey-web:8080"}
{{- end }}
{{- if and (eq .service "reporting") (eq .role "web") }}
- {name: HEARBACK_FOLLOWUP_URL, value: "http://{{ $name }}-followup-web:8080"}
{{- end }}
{{- end -}}

{{- define "hearback.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.user }}
runAsGroup: {{ .Values.user }}
fsGroup: {{ .Values.user }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "hearback.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "hearback.podCommon" -}}
serviceAccountName: {{ .Values.serviceAccountName }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "hearback.podSecurity" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: tmp
    # Customer lists of up to 200 MB lie here while they come in.
    emptyDir: {sizeLimit: 1Gi}
{{- end -}}
