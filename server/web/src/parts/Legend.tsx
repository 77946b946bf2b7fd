/** Which curve is which, and its value under the cursor. */

import type { Signal } from "@preact/signals";
import { cursorLabel } from "../charts/Chart";
import { nearest } from "../charts/draw";
import type { Ink } from "../charts/palette";
import type { Columns, XAxis } from "../data/types";
import { NONE, number } from "../format";
import { Icon } from "./icons";
import { RunName } from "./RunName";

export interface Entry {
  readonly id: string;
  readonly label: string;
  readonly href?: string;
  readonly ink: Ink;
  readonly columns: Columns | null;
  readonly note?: string;
}

interface Props {
  readonly entries: readonly Entry[];
  readonly cursor: Signal<number | null>;
  readonly x: XAxis;
  /** Called with the entry under the pointer. */
  readonly onLook?: (id: string | null) => void;
  readonly onRemove?: ((id: string) => void) | undefined;
}

export function Legend({ entries, cursor, x, onLook, onRemove }: Props) {
  const at = cursor.value;
  return (
    <div class="legend">
      <div class="legend-at">{at === null ? "last value" : cursorLabel(x, at)}</div>
      <ul>
        {entries.map((entry) => (
          <li key={entry.id} onPointerEnter={() => onLook?.(entry.id)} onPointerLeave={() => onLook?.(null)}>
            <Swatch ink={entry.ink} />
            {entry.href ? (
              <a class="legend-name" href={entry.href} title={entry.label}>
                <RunName run={entry.label} />
              </a>
            ) : (
              <span class="legend-name" title={entry.label}>
                <RunName run={entry.label} />
              </span>
            )}
            <span class="legend-value">{entry.note ?? valueAt(entry.columns, at)}</span>
            {onRemove && (
              <button
                type="button"
                class="ghost small"
                aria-label={`Take ${entry.label} off the chart`}
                onClick={() => onRemove(entry.id)}
              >
                <Icon name="close" />
              </button>
            )}
          </li>
        ))}
      </ul>
    </div>
  );
}

/** One value, or both extremes of the column under the cursor if they differ. */
function valueAt(columns: Columns | null, at: number | null): string {
  if (!columns || columns.x.length === 0) return NONE;
  if (at === null) return number(columns.end.at(-1), 3);
  const i = nearest(columns.x, at);
  const [low, high] = [columns.x[0]!, columns.x.at(-1)!];
  const air = (high - low) * 0.01 + 1e-9;
  if (i < 0 || at < low - air || at > high + air) return NONE;
  const [min, max] = [columns.min[i], columns.max[i]];
  if (min === null || max === null) return (columns.non_finite[i] ?? 0) > 0 ? "not finite" : NONE;
  const [a, b] = [number(min, 3), number(max, 3)];
  return a === b ? a : `${a} … ${b}`;
}

export function Swatch({ ink }: { ink: Ink }) {
  return (
    <svg class="swatch" viewBox="0 0 18 6" aria-hidden="true" style={{ color: `var(${ink.property})` }}>
      <path
        d="M1 3h16"
        stroke="currentColor"
        stroke-width="3"
        stroke-linecap={ink.dash.length ? "butt" : "round"}
        stroke-dasharray={ink.dash.map((d) => d * 0.8).join(" ")}
      />
    </svg>
  );
}
