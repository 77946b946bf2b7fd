/** A run keeps its color as long as it is on the screen. Eight hues that color-blind readers can tell apart, then dashes. */

export const HUES = 8;

export interface Ink {
  /** A custom property of the style sheet. */
  readonly property: string;
  readonly dash: readonly number[];
}

const DASHES: readonly (readonly number[])[] = [[], [7, 4], [2, 3], [9, 3, 2, 3]];

export const ink = (slot: number): Ink => ({
  property: `--hue-${slot % HUES}`,
  dash: DASHES[Math.floor(slot / HUES) % DASHES.length]!,
});

/** Assigns a slot to each name: those that have one keep it, new ones get the lowest free slots. */
export function assign(names: readonly string[], before: ReadonlyMap<string, number>): Map<string, number> {
  const slots = new Map<string, number>();
  const taken = new Set<number>();
  for (const name of names) {
    const slot = before.get(name);
    if (slot !== undefined && !taken.has(slot)) {
      slots.set(name, slot);
      taken.add(slot);
    }
  }
  let free = 0;
  for (const name of names) {
    if (slots.has(name)) continue;
    while (taken.has(free)) free += 1;
    slots.set(name, free);
    taken.add(free);
  }
  return slots;
}
