/** What each key does; ? shows the list. */

import { runs } from "./data/live";
import { toggleTheme } from "./theme";
import { overviewAddress, show, view } from "./view";
import {
  compare,
  focused,
  go,
  helpOpen,
  openRun,
  resetZoom,
  shownRows,
  togglePinned,
  toggleSelected,
} from "./views/actions";

export const KEYS: readonly (readonly [string, string])[] = [
  ["/", "search"],
  ["j  k", "next, previous run"],
  ["Enter", "open the run"],
  ["x", "add the run to the chart, or remove it"],
  ["p", "pin it to the top, or unpin"],
  ["c", "compare the selected runs"],
  ["n", "show only runs that need attention, or all"],
  ["[  ]", "previous, next run, on a run's page"],
  ["0", "zoom out to all steps"],
  ["l", "log or linear axis"],
  ["t", "light or dark"],
  ["Escape", "back, or leave the search"],
  ["?", "this list"],
];

export function followKeys(): void {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.target as HTMLElement;
    if (target.matches("input[type=search], input[type=password], select, textarea")) {
      if (event.key === "Escape") target.blur();
      if (target.id !== "search" || !["ArrowDown", "Enter", "Escape"].includes(event.key)) return;
      target.blur();
      if (event.key !== "Escape") move(1);
      return;
    }
    const keepsEnter = target.matches("button, a, input");
    if (keepsEnter && (event.key === "Enter" || event.key === " ")) return;
    if (target.matches("input") && event.key.startsWith("Arrow")) return;
    if (handle(event.key)) event.preventDefault();
  });
}

function handle(key: string): boolean {
  const overview = view.value.page === "overview";
  const row = focused.value && runs.value.has(focused.value) ? focused.value : null;
  switch (key) {
    case "/":
      if (!overview) go(overviewAddress());
      requestAnimationFrame(() => document.getElementById("search")?.focus());
      return true;
    case "?":
      helpOpen.value = !helpOpen.value;
      return true;
    case "Escape":
      if (helpOpen.value) helpOpen.value = false;
      else if (!overview) go(overviewAddress());
      else focused.value = null;
      return true;
    case "t":
      toggleTheme();
      return true;
    case "0":
      resetZoom();
      return true;
    case "l":
      show({ y: view.value.y === "linear" ? null : "linear" });
      return true;
    case "[":
    case "]":
      return beside(key === "]" ? 1 : -1);
  }
  if (!overview) return false;
  switch (key) {
    case "j":
    case "ArrowDown":
      return move(1);
    case "k":
    case "ArrowUp":
      return move(-1);
    case "c":
      if (view.value.selected.length >= 2) compare(view.value.selected.slice(0, 6));
      return true;
    case "n":
      show({ query: view.value.query === "needs=any" ? "" : "needs=any" });
      return true;
  }
  if (!row) return false;
  if (key === "x" || key === " ") toggleSelected(row);
  else if (key === "p") togglePinned(row);
  else if (key === "Enter") openRun(row);
  else return false;
  return true;
}

function move(by: 1 | -1): boolean {
  const names = shownRows.value;
  const at = focused.value === null ? -1 : names.indexOf(focused.value);
  const next = names[at < 0 ? (by > 0 ? 0 : names.length - 1) : Math.min(names.length - 1, Math.max(0, at + by))];
  if (next !== undefined) focused.value = next;
  return true;
}

/** On a run's page: opens the next or previous run of the table. */
function beside(by: 1 | -1): boolean {
  if (view.value.page !== "run") return false;
  const at = shownRows.value.indexOf(view.value.run);
  const next = shownRows.value[at + by];
  if (at >= 0 && next !== undefined) {
    focused.value = next;
    openRun(next);
  }
  return true;
}
