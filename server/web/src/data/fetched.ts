/** An answer of the server as the state of a component: the value, or the error. */

import { useEffect, useState } from "preact/hooks";
import { ApiError } from "./api";

export interface Fetched<T> {
  readonly value: T | null;
  readonly error: ApiError | null;
}

/** Asks again when `key` changes, and keeps the previous answer until the new one is there. Does not ask if the key is empty. */
export function useFetched<T>(key: string, ask: (signal: AbortSignal) => Promise<T>): Fetched<T> {
  const [state, setState] = useState<Fetched<T>>({ value: null, error: null });
  useEffect(() => {
    if (!key) return;
    const abort = new AbortController();
    ask(abort.signal).then(
      (value) => setState({ value, error: null }),
      (error: unknown) => {
        if (abort.signal.aborted) return;
        const known = error instanceof ApiError ? error : new ApiError("UNKNOWN", String(error));
        setState((before) => ({ value: known.reason === "UNREACHABLE" ? before.value : null, error: known }));
      },
    );
    return () => abort.abort();
  }, [key]);
  return state;
}
