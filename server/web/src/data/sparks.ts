/** Sparklines of the rows in view only, fetched in one request, and again when a run has new steps. */

import { signal } from "@preact/signals";
import * as api from "./api";
import { runs, touched } from "./live";
import type { Spark } from "./types";

const MOST = 100;
/** ms after which the sparkline of a training run is fetched again. */
const FRESH = 5000;

export const sparks = signal<ReadonlyMap<string, Spark>>(new Map());

interface Had {
  readonly step: number;
  readonly at: number;
}

const had = new Map<string, Had>();
let inView: readonly string[] = [];
let busy = false;
let timer: ReturnType<typeof setTimeout> | undefined;
let due = Number.POSITIVE_INFINITY;

/** Called by the table with the runs that it shows. */
export function want(names: readonly string[]): void {
  inView = names;
  later(60);
}

touched.subscribe(() => later(1000));

/** Refreshes after `wait` ms, unless a refresh is due earlier. */
function later(wait: number): void {
  const at = performance.now() + wait;
  if (at >= due) return;
  clearTimeout(timer);
  due = at;
  timer = setTimeout(() => {
    due = Number.POSITIVE_INFINITY;
    void look();
  }, wait);
}

async function look(): Promise<void> {
  if (busy) return later(100);
  const time = performance.now();
  const stale = inView.filter((name) => {
    const known = had.get(name);
    const run = runs.peek().get(name);
    return run && run.step > 0 && (!known || (known.step !== run.step && time - known.at > FRESH));
  });
  if (stale.length === 0) return;
  busy = true;
  const asked = stale.slice(0, MOST);
  for (const name of asked) had.set(name, { step: runs.peek().get(name)?.step ?? 0, at: time });
  try {
    sparks.value = new Map([...sparks.peek(), ...Object.entries(await api.sparklines(asked))]);
  } catch {
    for (const name of asked) had.delete(name); // the connection's own state says it
    later(2000);
  } finally {
    busy = false;
  }
  if (stale.length > MOST) later(0);
}
