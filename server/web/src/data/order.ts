/** Which rows the table has, and in which order. Pure. */

import { label } from "./labels";
import { type Need, type RunItem, STATUSES } from "./types";

export const SORTS = ["needs", "name", "status", "step", "S", "lr", "age", "created"] as const;
export type SortKey = (typeof SORTS)[number];
export interface Sort {
  readonly key: SortKey;
  readonly down: boolean;
}

const text = new Intl.Collator("en", { numeric: true }).compare;

/** Unknown values come last in either direction. */
function known(a: number | null, b: number | null, sign: number): number {
  if (a === b) return 0;
  if (a === null) return 1;
  if (b === null) return -1;
  return sign * (a < b ? -1 : 1);
}

export function compareRuns(sort: Sort): (a: RunItem, b: RunItem) => number {
  const sign = sort.down ? -1 : 1;
  const byName = (a: RunItem, b: RunItem): number => text(a.project, b.project) || text(a.run, b.run);
  const rank = (run: RunItem): number => STATUSES.indexOf(run.status);
  const first: Record<SortKey, (a: RunItem, b: RunItem) => number> = {
    needs: (a, b) => sign * (urgency(b) - urgency(a) || rank(a) - rank(b) || b.create_time - a.create_time),
    name: (a, b) => sign * byName(a, b),
    status: (a, b) => sign * (rank(a) - rank(b)),
    step: (a, b) => sign * (a.step - b.step),
    S: (a, b) => known(a.S, b.S, sign),
    lr: (a, b) => known(a.effective_lr, b.effective_lr, sign),
    age: (a, b) => known(a.step_time, b.step_time, -sign),
    created: (a, b) => -sign * (a.create_time - b.create_time),
  };
  const chosen = first[sort.key];
  return (a, b) => chosen(a, b) || byName(a, b);
}

/** 0: no alert. 1: the run is silent or cut off. 2: damage, or an alert about S. */
function urgency(run: RunItem): number {
  if (run.needs.length === 0) return 0;
  return run.needs.some((need) => KINDS.includes(need.kind)) ? 2 : 1;
}

/** Damage and alerts about S come first: that a run is silent is in its status as well. */
const KINDS = ["damaged", "non_finite", "collapsed", "running_away", "stuck", "oscillating"];

/** A run's alerts, the most important first. */
export function byWeight(needs: readonly Need[]): Need[] {
  const weight = (need: Need): number => (KINDS.indexOf(need.kind) + KINDS.length + 1) % (KINDS.length + 1);
  return [...needs].sort((a, b) => weight(a) - weight(b));
}

export type Row =
  | { readonly kind: "run"; readonly run: RunItem; readonly pinned: boolean; readonly place: number }
  | { readonly kind: "group"; readonly value: string; readonly runs: readonly RunItem[]; readonly open: boolean };

export const NO_VALUE = "(none)";

export function groupValue(run: RunItem, key: string): string {
  if (key === "status") return run.status;
  if (key === "project") return run.project;
  return label(run, key) ?? NO_VALUE;
}

/** Value of `key` → its runs. Values are in their natural order; runs without one come last. */
export function groupRuns(runs: readonly RunItem[], key: string): Map<string, RunItem[]> {
  const groups = new Map<string, RunItem[]>();
  for (const run of runs) {
    const value = groupValue(run, key);
    const group = groups.get(value);
    if (group) group.push(run);
    else groups.set(value, [run]);
  }
  const order = (a: string, b: string): number => Number(a === NO_VALUE) - Number(b === NO_VALUE) || text(a, b);
  return new Map([...groups].sort(([a], [b]) => order(a, b)));
}

/** Pinned runs, then the rest, in groups if there is a key; `runs` are in order already. */
export function layOut(
  runs: readonly RunItem[],
  pins: ReadonlySet<string>,
  key: string,
  closed: ReadonlySet<string>,
): Row[] {
  const rows: Row[] = [];
  let place = 0;
  const put = (run: RunItem, pinned: boolean): void => {
    rows.push({ kind: "run", run, pinned, place: place++ });
  };
  for (const run of runs) if (pins.has(run.name)) put(run, true);
  const rest = runs.filter((run) => !pins.has(run.name));
  if (!key) {
    for (const run of rest) put(run, false);
    return rows;
  }
  for (const [value, group] of groupRuns(rest, key)) {
    const open = !closed.has(value);
    rows.push({ kind: "group", value, runs: group, open });
    if (open) for (const run of group) put(run, false);
  }
  return rows;
}

/** Label key → value → number of runs; keys with one value for all runs come last. */
export function facets(runs: Iterable<RunItem>): Map<string, Map<string, number>> {
  const all = new Map<string, Map<string, number>>();
  for (const run of runs) {
    for (const [key, value] of Object.entries(run.labels)) {
      const values = all.get(key) ?? new Map<string, number>();
      values.set(value, (values.get(value) ?? 0) + 1);
      all.set(key, values);
    }
  }
  return new Map([...all].sort(([a, x], [b, y]) => Number(x.size === 1) - Number(y.size === 1) || text(a, b)));
}
