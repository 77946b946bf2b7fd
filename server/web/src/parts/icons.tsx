/** Statuses differ in shape as well as in color. */

import type { Status } from "../data/types";

const STATUS_SHAPES: Record<Status, preact.JSX.Element> = {
  running: <circle cx="8" cy="8" r="4.5" fill="currentColor" />,
  silent: (
    <>
      <circle cx="8" cy="8" r="4.25" fill="none" stroke="currentColor" stroke-width="1.8" />
      <path d="M8 3.5a4.5 4.5 0 0 1 0 9z" fill="currentColor" />
    </>
  ),
  preempted: <path d="M5.5 4v8M10.5 4v8" stroke="currentColor" stroke-width="2.2" stroke-linecap="round" />,
  failed: <path d="m4.5 4.5 7 7m0-7-7 7" stroke="currentColor" stroke-width="2.2" stroke-linecap="round" />,
  finished: (
    <path
      d="m3.5 8.5 3 3 6-7"
      fill="none"
      stroke="currentColor"
      stroke-width="2"
      stroke-linecap="round"
      stroke-linejoin="round"
    />
  ),
};

export function StatusIcon({ status }: { status: Status }) {
  return (
    <svg class={`icon status-${status}`} viewBox="0 0 16 16" aria-hidden="true">
      {STATUS_SHAPES[status]}
    </svg>
  );
}

const SHAPES = {
  alert: "M8 2.2 14.5 13.5h-13zM8 6.5v3.2M8 11.6v.1",
  pin: "M6 2h4l-.5 4.5L12 9H4l2.5-2.5zM8 9v5",
  sun: "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6M8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1.1 1.1M11.9 11.9 13 13M13 3l-1.1 1.1M4.1 11.9 3 13",
  moon: "M13 9.8A5.6 5.6 0 0 1 6.2 3a5.6 5.6 0 1 0 6.8 6.8",
  search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9M10.3 10.3 14 14",
  down: "M8 2v8m0 0 3-3m-3 3L5 7M3 13.5h10",
  copy: "M5.5 5.5h7v8h-7zM10 5.5v-3H3.5v8h2",
  check: "m3 8.5 3 3 7-7",
  close: "m4 4 8 8m0-8-8 8",
  chevron: "m6 4 4 4-4 4",
  back: "M7 3 2.5 8 7 13M3 8h10.5",
  help: "M6 6.2a2 2 0 1 1 2.8 1.9c-.5.3-.8.6-.8 1.2M8 11.4v.1M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13",
} as const;

export function Icon({ name }: { name: keyof typeof SHAPES }) {
  return (
    <svg
      class="icon"
      viewBox="0 0 16 16"
      fill="none"
      stroke="currentColor"
      stroke-width="1.5"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
    >
      <path d={SHAPES[name]} />
    </svg>
  );
}

/** The curve of S: zero, the rise, the plateau. */
export function Logo() {
  return (
    <svg class="logo" viewBox="0 0 32 32" aria-hidden="true">
      <path d="M3 26h5c6 0 5-19 12-19h9" fill="none" stroke="currentColor" stroke-width="3.5" stroke-linecap="round" />
    </svg>
  );
}
