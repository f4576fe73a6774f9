// Keeps a part of a page fresh: <div id="…" data-live="2" [data-live-url="…"]> is fetched again every so many
// seconds until the server leaves data-live off it. The page itself, or the URL, must contain the same id.

const live = (element) => Number(element?.dataset.live) > 0;

async function refresh(element) {
  if (document.hidden) return element;
  const url = element.dataset.liveUrl || location.href;
  const response = await fetch(url, { headers: { Accept: "text/html", "X-Fragment": element.id } });
  if (!response.ok || response.redirected) return element;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = page.getElementById(element.id);
  if (!fresh) return element;
  // What somebody is using now is left alone until they are done.
  if (element.contains(document.activeElement) && document.activeElement.matches("input, textarea, select")) {
    return element;
  }
  if (fresh.innerHTML !== element.innerHTML || fresh.dataset.live !== element.dataset.live) {
    const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
    element.replaceWith(fresh);
    if (focused) document.getElementById(focused)?.focus();
    return fresh;
  }
  return element;
}

async function keep(element) {
  let pause = Number(element.dataset.live);
  while (live(element)) {
    await new Promise((done) => setTimeout(done, pause * 1000));
    if (!element.isConnected) return;
    try {
      element = await refresh(element);
      pause = Number(element.dataset.live) || pause;
    } catch {
      pause = Math.min(pause * 2, 30);
    }
  }
}

for (const element of document.querySelectorAll("[data-live]")) {
  if (live(element)) keep(element);
}
