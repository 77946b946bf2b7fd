/** Made-up runs and curves for tests. */

import type { Columns, RunItem } from "../src/data/types";

export const run = (fields: Partial<RunItem> & { run: string }): RunItem => ({
  name: `projects/${fields.project ?? "p"}/runs/${fields.run}`,
  project: "p",
  status: "running",
  status_message: "",
  step: 10,
  S: 1e-3,
  scale: [1e-3],
  groups: 1,
  base_lr: 1,
  effective_lr: 1e-3,
  labels: {},
  create_time: 0,
  step_time: 0,
  archive_time: null,
  interval: 1,
  sessions: 1,
  rewinds: 0,
  needs: [],
  ...fields,
});

/** Columns of `size` steps each over the values of steps 1, 2, …; not finite ones are counted, as the server does. */
export function columns(values: readonly number[], size: number): Columns {
  const made = { x: [], first: [], last: [], min: [], max: [], end: [], non_finite: [], held: [] } as {
    [K in keyof Columns]: (number | null)[];
  };
  for (let at = 0; at < values.length; at += size) {
    const part = values.slice(at, at + size);
    const finite = part.filter(Number.isFinite);
    made.x.push(at + (part.length + 1) / 2);
    made.first.push(at + 1);
    made.last.push(at + part.length);
    made.min.push(finite.length ? Math.min(...finite) : null);
    made.max.push(finite.length ? Math.max(...finite) : null);
    made.end.push(finite.at(-1) ?? null);
    made.non_finite.push(part.length - finite.length);
    made.held.push(0);
  }
  return made as unknown as Columns;
}

/** Numbers in [0, 1) that are the same for the same seed. */
export function random(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}
