/** Where the reader is, and how they get elsewhere: the browser's history. */

import { signal } from "@preact/signals";
import { formatRoute, type Place, parseRoute, type Route, sameObject } from "./route.js";

const read = (): Route => parseRoute(location.pathname, location.search);

export const route = signal<Route>(read());

let address = location.pathname + location.search;

/** The element that scrolls: the main column or, where the page is narrow, the page. */
export function scroller(): Element {
  const main = document.getElementById("main");
  return main && getComputedStyle(main).overflowY === "auto" ? main : document.documentElement;
}

/** Goes to a place. Back leads to where the reader is now, unless it is `instead` of it. */
export function go(place: Place, instead = false): void {
  const hash = sameObject(place, route.value) ? location.hash : ""; // the diagram's own view stays
  const url = formatRoute(place) + hash;
  if (url === address + location.hash) return;
  if (!instead) history.replaceState({ top: scroller().scrollTop }, "");
  history[instead ? "replaceState" : "pushState"](null, "", url);
  arrive(false);
}

function arrive(back: boolean): void {
  const now = location.pathname + location.search;
  if (now === address) return; // only the diagram's own part is another
  const [from, to] = [route.value, read()];
  address = now;
  route.value = to;
  if (sameObject(from, to)) return;
  const top = back ? Number((history.state as { top?: number } | null)?.top ?? 0) : 0;
  requestAnimationFrame(() => {
    scroller().scrollTop = top;
    if (!back) document.querySelector<HTMLElement>("#main h1")?.focus({ preventScroll: true });
  });
}

/** Follows the history and clicks on links. */
export function navigate(): void {
  addEventListener("popstate", () => arrive(true));
  document.addEventListener("click", (event) => {
    const link = (event.composedPath()[0] as Element).closest?.("a");
    if (!link || event.defaultPrevented || event.button !== 0) return;
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    if (link.origin !== location.origin || link.target || link.hasAttribute("download")) return;
    if (link.hash && link.pathname === location.pathname) return;
    const to = parseRoute(link.pathname, link.search);
    if (to.page === "nowhere") return;
    event.preventDefault();
    go(to);
  });
}
