/** S of every scale group over the steps: one row per group, from light (small) to dark (large), on a log scale. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { HeatmapReply } from "../data/types";
import { count, number } from "../format";
import { colour, dark } from "../theme";

interface Props {
  readonly data: HeatmapReply;
  /** How many scale groups there are; if there are very many, a row stands for several neighbors. */
  readonly groups: number;
  readonly chosen: number | null;
  readonly onChoose: (group: number | null) => void;
}

interface Seen {
  readonly group: number;
  readonly column: number;
}

const NAMES = 168;

export function Heatmap({ data, groups: all, chosen: chosenGroup, onChoose }: Props) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [seen, setSeen] = useState<Seen | null>(null);
  const groups = data.groups.length;
  const together = Math.max(1, Math.ceil(all / Math.max(1, groups)));
  const chosen = chosenGroup === null ? null : Math.floor(chosenGroup / together);
  const choose = (row: number): void => onChoose(chosen === row ? null : row * together);
  const rowHeight = groups <= 8 ? 22 : groups <= 24 ? 15 : Math.max(1, Math.floor(480 / groups));
  const height = groups * rowHeight;
  const [low, high] = bounds(data);
  const isDark = dark.value;

  useLayoutEffect(() => {
    const paint = (): void => {
      if (canvas.current) paintCells(canvas.current, data, low, high);
    };
    paint();
    const watch = new ResizeObserver(paint);
    if (canvas.current) watch.observe(canvas.current);
    return () => watch.disconnect();
  }, [data, low, high, isDark, height]);

  useEffect(() => setSeen(null), [data]);
  const at = (event: PointerEvent | MouseEvent): Seen | null => {
    const box = canvas.current!.getBoundingClientRect();
    const group = Math.floor(((event.clientY - box.top) / box.height) * groups);
    const column = Math.floor(((event.clientX - box.left) / box.width) * data.first.length);
    return group >= 0 && group < groups && column >= 0 && column < data.first.length ? { group, column } : null;
  };
  const every = Math.max(1, Math.ceil(14 / rowHeight));
  return (
    <div class="heatmap">
      <div class="heat-grid" style={{ gridTemplateColumns: `${NAMES}px 1fr` }}>
        <ol class="heat-names" style={{ height: `${height}px` }}>
          {data.groups.map((name, i) =>
            i % every === 0 || chosen === i ? (
              <li
                key={name}
                class={chosen === i ? "on" : ""}
                style={{ top: `${i * rowHeight}px`, lineHeight: `${Math.max(14, rowHeight)}px` }}
              >
                <button type="button" title={name} onClick={() => choose(i)}>
                  {name}
                </button>
              </li>
            ) : null,
          )}
        </ol>
        <canvas
          ref={canvas}
          role="img"
          aria-label={`S of ${count(groups)} scale groups, steps ${count(data.first[0] ?? 0)} to ${count(data.last.at(-1) ?? 0)}`}
          style={{ height: `${height}px` }}
          onPointerMove={(event) => setSeen(at(event))}
          onPointerLeave={() => setSeen(null)}
          onClick={(event) => {
            const cell = at(event);
            if (cell) choose(cell.group);
          }}
        />
        <span />
        <div class="heat-steps">
          {[0, 0.25, 0.5, 0.75, 1].map((part) => (
            <span key={part}>{count(data.first[Math.round(part * (data.first.length - 1))] ?? 0)}</span>
          ))}
        </div>
      </div>
      <div class="heat-key">
        <span>{number(10 ** low)}</span>
        <i aria-hidden="true" />
        <span>{number(10 ** high)}</span>
        <output>
          {seen
            ? `${data.groups[seen.group]} · steps ${count(data.first[seen.column]!)}–${count(data.last[seen.column]!)} · S ${number(data.S[seen.group]?.[seen.column], 3)}`
            : "each row is a scale group; click one to see its curve"}
        </output>
      </div>
    </div>
  );
}

/** log10 of the smallest and largest S > 0. */
function bounds(data: HeatmapReply): [number, number] {
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (const row of data.S) {
    for (const value of row) {
      if (value === null || !(value > 0)) continue;
      const place = Math.log10(value);
      if (place < low) low = place;
      if (place > high) high = place;
    }
  }
  if (low > high) return [-8, 0];
  return high - low < 1 ? [low - 0.5, high + 0.5] : [low, high];
}

/** 256 colors between the style sheet's five stops, which differ between light and dark. */
function ramp(): Uint8ClampedArray {
  const strip = new OffscreenCanvas(256, 1);
  const context = strip.getContext("2d")!;
  const gradient = context.createLinearGradient(0, 0, 256, 0);
  for (let i = 0; i < 5; i += 1) gradient.addColorStop(i / 4, colour(`--heat-${i}`));
  context.fillStyle = gradient;
  context.fillRect(0, 0, 256, 1);
  return context.getImageData(0, 0, 256, 1).data;
}

function paintCells(canvas: HTMLCanvasElement, data: HeatmapReply, low: number, high: number): void {
  const [wide, tall] = [Math.max(1, data.first.length), Math.max(1, data.groups.length)];
  canvas.width = wide;
  canvas.height = tall;
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(wide, tall);
  const colours = ramp();
  for (let row = 0; row < tall; row += 1) {
    for (let column = 0; column < wide; column += 1) {
      const value = data.S[row]?.[column];
      if (value === null || value === undefined || !(value > 0)) continue; // transparent: S is 0 or not known
      const place = Math.round(((Math.log10(value) - low) / (high - low)) * 255);
      const to = 4 * (row * wide + column);
      image.data.set(colours.subarray(4 * place, 4 * place + 3), to);
      image.data[to + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}
