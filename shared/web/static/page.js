// Small conveniences of every page; every page can be used without them.

// Menus close on Escape and on a click elsewhere.
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details[data-menu][open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details[data-menu][open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});

// One key leads to what says so: <a data-key="n">, <input data-key="/">. Not while somebody types.
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const found = [...document.querySelectorAll("[data-key]")].find(
    (element) => element.dataset.key === event.key && element.getClientRects().length > 0,
  );
  if (!found) return;
  event.preventDefault();
  if (found.matches("input, textarea, select")) found.focus();
  else found.click();
});

// j and k go down and up a list: <ul data-list> whose entries have an a.row-link; Enter opens.
document.addEventListener("keydown", (event) => {
  if (event.key !== "j" && event.key !== "k") return;
  if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const links = [...document.querySelectorAll("[data-list] a.row-link")];
  if (!links.length) return;
  const here = links.indexOf(document.activeElement);
  const next = event.key === "j" ? Math.min(here + 1, links.length - 1) : Math.max(here - 1, 0);
  links[next].focus();
});

// What came back wrong gets the focus.
document.querySelector("[data-focus]")?.focus();

// A form is sent once, and a question is asked before what cannot be undone.
document.addEventListener("submit", (event) => {
  const form = event.target;
  const question = event.submitter?.dataset.confirm ?? form.dataset.confirm;
  if (question && !window.confirm(question)) {
    event.preventDefault();
    return;
  }
  if (form.method !== "post") return;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "1";
});
// A page that comes back from the browser's cache may be sent again.
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// Drafts: <textarea data-draft="task-123"> keeps what was typed until its form has arrived. Whether it has
// is known on the next page: not when that is an error, or a login that came in between.
const PREFIX = "hearback-draft:";
const SENT = "hearback-draft-sent";
try {
  const status = performance.getEntriesByType("navigation")[0]?.responseStatus ?? 200;
  const sent = sessionStorage.getItem(SENT);
  sessionStorage.removeItem(SENT);
  if (sent && status < 400 && location.pathname !== "/followup/login") {
    for (const key of JSON.parse(sent)) localStorage.removeItem(key);
  }
  for (const area of document.querySelectorAll("textarea[data-draft]")) {
    const key = PREFIX + area.dataset.draft;
    const kept = localStorage.getItem(key);
    if (kept && !area.value) {
      area.value = kept;
      const note = document.createElement("p");
      note.className = "draft-note";
      note.textContent = "Your draft from before is back.";
      area.after(note);
    }
    area.addEventListener("input", () => {
      if (area.value) localStorage.setItem(key, area.value);
      else localStorage.removeItem(key);
    });
  }
  document.addEventListener("submit", (event) => {
    if (event.defaultPrevented) return;
    const keys = [...event.target.querySelectorAll("textarea[data-draft]")].map((area) => PREFIX + area.dataset.draft);
    if (keys.length) sessionStorage.setItem(SENT, JSON.stringify(keys));
  });
} catch {
  // Storage is switched off: drafts are then not kept.
}
for (const element of document.querySelectorAll("form[action$='/logout']")) {
  element.addEventListener("submit", () => {
    try {
      for (const key of Object.keys(localStorage)) if (key.startsWith(PREFIX)) localStorage.removeItem(key);
    } catch {
      // Nothing was kept either.
    }
  });
}
