// Followup's live parts: who is on a task, what changed, one-time secrets to copy. Pages work without them.

const token = document.querySelector('meta[name="csrf-token"]')?.content ?? "";

// Calling says so: colleagues see it, and nobody else calls the same customer.
for (const link of document.querySelectorAll("[data-calling]")) {
  link.addEventListener("click", () => {
    fetch(link.dataset.calling, {
      method: "POST",
      keepalive: true,
      headers: { "X-CSRF-Token": token, "X-Requested-With": "fetch", Accept: "application/json" },
    })
      .then((reply) => (reply.ok ? reply.json() : null))
      .then((now) => now && taken(now.version))
      .catch(() => {});
  });
}

const task = document.querySelector("[data-task]");
let version = Number(task?.dataset.version);

// Taking an unowned task by calling is our own doing: the forms of this page go on from there.
function taken(now) {
  version = now;
  for (const field of task.querySelectorAll('input[name="version"]')) field.value = String(now);
}

async function look() {
  const reply = await fetch(`/followup/tasks/${task.dataset.task}/state`, { headers: { Accept: "application/json" } });
  const banner = task.querySelector("[data-changed]");
  const words = task.querySelector("[data-changed-text]");
  if (reply.status === 404) {
    words.textContent = "This task belongs to somebody else now. Copy what you typed before you leave.";
  } else if (reply.ok) {
    const now = await reply.json();
    if (now.version !== version) words.textContent = "Somebody acted on this task since you opened it.";
    else if (now.on_it) words.textContent = `${now.on_it} is on this right now.`;
    else {
      banner.hidden = true;
      return;
    }
  } else return;
  banner.hidden = false;
}

if (task) {
  setInterval(() => {
    if (!document.hidden) look().catch(() => {});
  }, 10000);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) look().catch(() => {});
  });
}

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.querySelector(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

// Views scroll sideways on phones: the present one is in sight.
document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
