/** The columns of the curves on the screen: fetched after a zoom, extended at the tail while runs train. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { runs, touched } from "./live";
import type { Columns, SeriesAsk, SeriesRun } from "./types";

/** ms between two requests for the tail. */
const PACE = 500;

export interface Lines {
  readonly lines: ReadonlyMap<string, SeriesRun>;
  readonly loading: boolean;
  readonly error: string | null;
}

const NOTHING: Lines = { lines: new Map(), loading: false, error: null };

/** `columns` with those from the tail's first step on replaced by the tail. Pure. */
export function splice(columns: Columns, tail: Columns): Columns {
  const from = tail.first[0];
  if (from === undefined) return columns;
  let keep = columns.last.length;
  while (keep > 0 && columns.last[keep - 1]! >= from) keep -= 1;
  const join = <T>(a: readonly T[], b: readonly T[]): T[] => [...a.slice(0, keep), ...b];
  return {
    x: join(columns.x, tail.x),
    first: join(columns.first, tail.first),
    last: join(columns.last, tail.last),
    min: join(columns.min, tail.min),
    max: join(columns.max, tail.max),
    end: join(columns.end, tail.end),
    non_finite: join(columns.non_finite, tail.non_finite),
    held: join(columns.held, tail.held),
  };
}

/** Whether a column of `tail` covers more steps than any of `columns`. Pure. */
export function coarser(tail: Columns, columns: Columns): boolean {
  return widest(tail) > widest(columns);
}

function widest({ first, last }: Columns): number {
  return last.reduce((widest, step, column) => Math.max(widest, step - first[column]! + 1), 0);
}

export function useSeries(names: readonly string[], ask: SeriesAsk | null): Lines {
  const [state, setState] = useState<Lines>(NOTHING);
  const lines = useRef(new Map<string, SeriesRun>());
  const asked = useRef("");
  const key = ask ? JSON.stringify(ask) : "";
  const list = names.join(",");
  const wanted = useMemo(() => new Set(names), [list]);

  useEffect(() => {
    if (!ask) return;
    const anew = asked.current !== key;
    const missing = anew ? [...wanted] : [...wanted].filter((name) => !lines.current.has(name));
    for (const name of lines.current.keys()) if (!wanted.has(name)) lines.current.delete(name);
    const publish = (loading: boolean, error: string | null): void =>
      setState({ lines: new Map(lines.current), loading, error });
    if (missing.length === 0) {
      publish(false, null);
      return;
    }
    const abort = new AbortController();
    publish(true, null);
    api.series(missing, ask, abort.signal).then(
      (found) => {
        asked.current = key;
        if (anew) lines.current.clear();
        for (const line of found) if (wanted.has(line.name)) lines.current.set(line.name, line);
        publish(false, null);
      },
      (error: Error) => {
        if (!abort.signal.aborted) publish(false, error.message);
      },
    );
    return () => abort.abort();
  }, [key, wanted]);

  useEffect(() => {
    if (ask?.branch !== 0) return;
    const waiting = new Set<string>();
    let busy = false;
    const abort = new AbortController();
    const look = async (): Promise<void> => {
      if (busy || waiting.size === 0 || asked.current !== key || document.hidden) return;
      busy = true;
      const batch = [...waiting];
      waiting.clear();
      try {
        const fresh = await moveOn(batch, lines.current, ask, abort.signal);
        if (abort.signal.aborted || asked.current !== key) return;
        for (const line of fresh) if (lines.current.has(line.name)) lines.current.set(line.name, line);
        if (fresh.length) setState({ lines: new Map(lines.current), loading: false, error: null });
      } catch {
        for (const name of batch) waiting.add(name); // the connection's own state says it; the next look tries again
      } finally {
        busy = false;
      }
    };
    const stop = touched.subscribe((moved) => {
      for (const name of moved) if (wanted.has(name)) waiting.add(name);
    });
    const timer = setInterval(() => void look(), PACE);
    return () => {
      stop();
      clearInterval(timer);
      abort.abort();
    };
  }, [key, wanted]);

  return state;
}

/** The lines of `batch` with their new steps: usually only the tail is fetched, and now and then everything. */
async function moveOn(
  batch: readonly string[],
  lines: ReadonlyMap<string, SeriesRun>,
  ask: SeriesAsk,
  signal: AbortSignal,
): Promise<SeriesRun[]> {
  const whole: string[] = [];
  const tails: Tail[] = [];
  for (const name of batch) {
    const line = lines.get(name);
    const last = line?.columns.x.at(-1);
    const step = runs.peek().get(name)?.step ?? 0;
    if (!line || last === undefined || step < line.last_step || line.columns.x.length > 1.5 * ask.columns)
      whole.push(name);
    else if (ask.x1 === null || last < ask.x1) {
      const grown = (step - line.last_step) / Math.max(1, line.last_step - line.first_step);
      tails.push({ line, from: line.columns.x.at(-2) ?? last, columns: Math.ceil(ask.columns * grown) + 4 });
    }
  }
  const fetched = await Promise.all([
    whole.length ? api.series(whole, ask, signal) : [],
    ...alike(tails).map((group) => fetchTails(group, ask, signal)),
  ]);
  return fetched.flat();
}

interface Tail {
  readonly line: SeriesRun;
  readonly from: number;
  readonly columns: number;
}

/** Tails that begin at the same place share a request; a run far behind must not make another one's tail coarse. */
function alike(tails: readonly Tail[]): Tail[][] {
  const groups = new Map<number, Tail[]>();
  for (const tail of tails) groups.set(tail.from, [...(groups.get(tail.from) ?? []), tail]);
  return [...groups.values()];
}

async function fetchTails(tails: readonly Tail[], ask: SeriesAsk, signal: AbortSignal): Promise<SeriesRun[]> {
  const from = Math.max(tails[0]!.from, ask.x0 ?? Number.NEGATIVE_INFINITY);
  const columns = Math.min(ask.columns, Math.max(...tails.map((tail) => tail.columns)));
  const lines = new Map(tails.map((tail) => [tail.line.name, tail.line]));
  const found = await api.series([...lines.keys()], { ...ask, x0: from, columns }, signal);
  // A run may be further than its live row says; then its tail has too few columns.
  const behind = found.filter((tail) => !tail.missing && coarser(tail.columns, lines.get(tail.name)!.columns));
  const names = behind.map((tail) => tail.name);
  const whole = names.length ? await api.series(names, ask, signal) : [];
  const moved = found.flatMap((tail) => {
    const line = lines.get(tail.name);
    if (!line || tail.missing || behind.includes(tail)) return [];
    const columns = splice(line.columns, tail.columns);
    return [{ ...tail, first_step: line.first_step, exact: line.exact && tail.exact, columns }];
  });
  return [...moved, ...whole];
}
