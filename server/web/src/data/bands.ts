/** Quantile bands of groups of runs, fetched again after a zoom, and periodically while their runs train. */

import { useEffect, useState } from "preact/hooks";
import * as api from "./api";
import { touched } from "./live";
import type { BandGroup, SeriesAsk } from "./types";

/** ms between two requests; the server rests at least REST times as long as it worked. */
const PACE = 5000;
const REST = 10;
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
  const key = groups ? JSON.stringify([groups, series, x, x0, x1]) : "";

  useEffect(() => {
    if (!groups) return;
    const abort = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let moved = false;
    const stop = touched.subscribe(() => {
      moved = true;
    });
    const look = async (): Promise<void> => {
      const began = performance.now();
      moved = false;
      setAnswer((before) => ({ ...before, loading: true }));
      try {
        const ask = { groups, series, x, x0, x1, columns: COLUMNS, quantiles: QUANTILES };
        const { groups: bands } = await api.bands(ask, abort.signal);
        setAnswer({ bands, loading: false, error: null });
      } catch (error) {
        if (abort.signal.aborted) return;
        setAnswer((before) => ({ ...before, loading: false, error: error instanceof Error ? error.message : "" }));
      }
      wait(Math.max(PACE, REST * (performance.now() - began)));
    };
    const wait = (time: number): void => {
      timer = setTimeout(() => (moved && !document.hidden ? void look() : wait(PACE)), time);
    };
    void look();
    return () => {
      stop();
      clearTimeout(timer);
      abort.abort();
    };
  }, [key]);

  return answer;
}
