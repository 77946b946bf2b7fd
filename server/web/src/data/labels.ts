/** A run's labels by their keys, which may be any word: `constructor` as well, or the name of another field. Pure. */

import type { RunItem } from "./types";

const PREFIX = "labels.";

/** What a word before an operator, or a key to group by, means if it is not a label's. */
export const FIELDS: ReadonlySet<string> = new Set([
  ...["name", "run", "project", "status", "needs", "step", "s", "lr", "effective_lr", "base_lr"],
  ...["age", "interval", "sessions", "rewinds", "groups"],
]);

/** The value of a run's label; `labels.KEY` is KEY, where no label has that whole name. */
export function label(run: RunItem, key: string): string | undefined {
  if (Object.hasOwn(run.labels, key)) return run.labels[key];
  return key.startsWith(PREFIX) ? label(run, key.slice(PREFIX.length)) : undefined;
}

/** How a label is named where its key alone would mean another field. */
export const labelKey = (key: string): string => (FIELDS.has(key.toLowerCase()) ? `${PREFIX}${key}` : key);
