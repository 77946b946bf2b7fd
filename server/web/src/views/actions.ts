/** How rows, keys and menus change the view. */

import { signal } from "@preact/signals";
import type { RunItem } from "../data/types";
import { compareAddress, runAddress, show, view } from "../view";

/** The row that the keyboard has selected. */
export const focused = signal<string | null>(null);
export const helpOpen = signal(false);
/** Names of the rows of the table, in order: where j and k go. */
export const shownRows = signal<readonly string[]>([]);

const toggled = (list: readonly string[], name: string): string[] =>
  list.includes(name) ? list.filter((one) => one !== name) : [...list, name];

export const toggleSelected = (name: string): void => show({ selected: toggled(view.value.selected, name) });
export const togglePinned = (name: string): void => show({ pinned: toggled(view.value.pinned, name) });
export const toggleClosed = (value: string): void => show({ closed: toggled(view.value.closed, value) });

export function selectAll(runs: readonly RunItem[]): void {
  const names = runs.map((run) => run.name);
  const all = names.every((name) => view.value.selected.includes(name));
  const rest = view.value.selected.filter((name) => !names.includes(name));
  show({ selected: all ? rest : [...rest, ...names] });
}

export const go = (address: string): void => {
  location.hash = address;
};
export const openRun = (name: string): void => go(runAddress(name));
export const compare = (names: readonly string[]): void => go(compareAddress(names));
export const resetZoom = (): void => show({ x0: null, x1: null }, "push");
