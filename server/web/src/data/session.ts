/** Who reads this page: a token typed once, or brought by a link, becomes a cookie that no script can read. */

import { signal } from "@preact/signals";
import * as api from "./api";
import type { Viewer } from "./types";

export const viewer = signal<Viewer | null>(null);

const LINK = /^#token=([\w-]+)$/;

/** Throws an ApiError that says why not. */
export async function signIn(token: string): Promise<void> {
  await api.login(token.trim());
  api.signedOut.value = null;
}

export async function signOut(): Promise<void> {
  await api.logout();
  api.signedOut.value = "";
}

/** The token of a link such as `#token=mech_…`. It leaves the address bar at once, and the history with it. */
export function takeToken(): string | null {
  const token = LINK.exec(location.hash)?.[1];
  if (token === undefined) return null;
  history.replaceState(null, "", "#/");
  return token;
}
