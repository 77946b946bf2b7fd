/** Quantile bands of groups of runs, fetched again at a zoom, and every few seconds while their runs train. */

import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { touched } from "./live";
import type { BandGroup, SeriesAsk } from "./types";

const PACE = 5000;
const COLUMNS = 200;
const QUANTILES = [0.1, 0.5, 0.9];

export interface BandAnswer {
  readonly bands: readonly BandGroup[];
  readonly loading: boolean;
  readonly error: string | null;
}

type Members = readonly { readonly label: string; readonly runs: readonly string[] }[];

export function useBands(groups: Members | null, { series, x, x0, x1 }: SeriesAsk): BandAnswer {
  const [answer, setAnswer] = useState<BandAnswer>({ bands: [], loading: false, error: null });
  const [round, setRound] = useState(0);
  const moved = useRef(false);
  const key = groups ? JSON.stringify([groups, series, x, x0, x1]) : "";

  useEffect(() => {
    if (!groups) return;
    const stop = touched.subscribe(() => {
      moved.current = true;
    });
    moved.current = false;
    const timer = setInterval(() => {
      if (moved.current && !document.hidden) setRound((before) => before + 1);
      moved.current = false;
    }, PACE);
    return () => {
      stop();
      clearInterval(timer);
    };
  }, [key]);

  useEffect(() => {
    if (!groups) return;
    const abort = new AbortController();
    setAnswer((before) => ({ ...before, loading: true }));
    const ask = { groups, series, x, x0, x1, columns: COLUMNS, quantiles: QUANTILES };
    api.bands(ask, abort.signal).then(
      ({ groups: bands }) => setAnswer({ bands, loading: false, error: null }),
      (error: Error) => {
        if (!abort.signal.aborted) setAnswer({ bands: [], loading: false, error: error.message });
      },
    );
    return () => abort.abort();
  }, [key, round]);

  return answer;
}
