/** S over a run's whole life, on a log axis, with its extremes; no ticks. */

import type { Spark } from "../data/types";
import { memo } from "./memo";

const WIDTH = 120;
const HEIGHT = 20;

interface Shape {
  readonly line: string;
  readonly band: string;
  readonly end: readonly [number, number] | null;
}

/** SVG paths in a box of WIDTH × HEIGHT. Pure. */
export function sparkShape(spark: Spark): Shape {
  const positive = (value: number | null | undefined): value is number => typeof value === "number" && value > 0;
  const values = [...spark.min, ...spark.max, ...spark.end].filter(positive).map(Math.log10);
  if (values.length === 0) return { line: "", band: "", end: null };
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (high - low < 0.5) [low, high] = [(low + high) / 2 - 0.25, (low + high) / 2 + 0.25];
  const x0 = spark.x[0] ?? 0;
  const wide = (spark.x.at(-1) ?? 1) - x0 || 1;
  const px = (i: number): number => 2 + ((spark.x[i]! - x0) / wide) * (WIDTH - 6);
  const py = (value: number): number => HEIGHT - 2 - ((Math.log10(value) - low) / (high - low)) * (HEIGHT - 4);
  const at = (x: number, y: number): string => `${x.toFixed(1)} ${y.toFixed(1)}`;
  let line = "";
  let above = "";
  let below = "";
  let end: [number, number] | null = null;
  spark.x.forEach((_, i) => {
    const [value, max, min] = [spark.end[i], spark.max[i], spark.min[i]];
    if (positive(value)) {
      line += `${end ? "L" : "M"}${at(px(i), py(value))}`;
      end = [px(i), py(value)];
    }
    if (positive(max)) {
      above += `${above ? "L" : "M"}${at(px(i), py(max))}`;
      below = `L${at(px(i), positive(min) ? py(min) : HEIGHT - 2)}${below}`;
    }
  });
  const band = above && `${above}${below}Z`;
  return { line, band, end };
}

export const Sparkline = memo(function Sparkline({ spark, label }: { spark: Spark | undefined; label: string }) {
  const shape = spark && sparkShape(spark);
  return (
    <svg class="spark" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={label}>
      {shape && <path class="spark-band" d={shape.band} />}
      {shape && <path class="spark-line" d={shape.line} />}
      {shape?.end && <circle cx={shape.end[0]} cy={shape.end[1]} r="1.8" />}
    </svg>
  );
});
