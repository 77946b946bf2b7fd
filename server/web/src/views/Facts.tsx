/** A list of names and values. */

import { NONE, tick } from "../format";

export function Facts({ facts }: { facts: readonly (readonly [string, unknown])[] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{plain(value)}</dd>
        </div>
      ))}
    </dl>
  );
}

/** A value of a configuration in words; long lists are cut, and say so. */
export function plain(value: unknown): string {
  if (value === null || value === undefined) return NONE;
  if (typeof value === "number") return tick(value);
  if (typeof value === "string") return value;
  if (Array.isArray(value)) {
    const shown = value.slice(0, 12).map(plain).join(", ");
    return value.length > 12 ? `${shown}, … ${value.length} in all` : shown;
  }
  return JSON.stringify(value);
}
