/** The other series of a run, one small chart each, and S of its scale groups. */

import { type Signal, useSignal } from "@preact/signals";
import { useEffect, useMemo, useState } from "preact/hooks";
import { Chart, cursorLabel } from "../charts/Chart";
import { Heatmap } from "../charts/Heatmap";
import type { Mark } from "../charts/paint";
import { ink } from "../charts/palette";
import * as api from "../data/api";
import { useFetched } from "../data/fetched";
import { useSeries } from "../data/series";
import { type RunDetail, type RunItem, SERIES, type Series, type SeriesAsk, type SeriesRun } from "../data/types";
import { number, plural } from "../format";
import type { Entry } from "../parts/Legend";
import { show, view } from "../view";
import { resetZoom } from "./actions";
import { roundPixels, zoomed } from "./ChartPanel";

/** The request for a series of the run, with the view's axis, zoom, group and branch. */
export const askOf = (series: Series, pixels: number): SeriesAsk => {
  const { x, x0, x1, scale, branch } = view.value;
  return { series, group: scale, branch, x, x0, x1, columns: roundPixels(pixels) };
};

/** The events, placed on the current axis; the columns say where a step is. */
export function useMarks(detail: RunDetail, line: SeriesRun | undefined, x: string): Mark[] {
  return useMemo(
    () =>
      detail.events.flatMap((event) => {
        if (x === "step") return [{ x: event.step, kind: event.kind }];
        if (x === "time") return [{ x: event.time, kind: event.kind }];
        const columns = line?.columns;
        const at = columns ? columns.last.findIndex((last) => last >= event.step) : -1;
        return columns && at >= 0 ? [{ x: columns.x[at]!, kind: event.kind }] : [];
      }),
    [detail.events, line, x],
  );
}

export function Layers({ run, width }: { run: RunItem; width: number }) {
  const { branch, x, x0, x1, scale } = view.value;
  const zoom = x === "step" ? ([x0, x1] as const) : ([null, null] as const);
  const columns = Math.min(600, roundPixels(width) / 2);
  const [round, setRound] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && setRound((before) => before + 1), 5000);
    return () => clearInterval(timer);
  }, []);
  const moving = run.status === "running" ? round : 0;
  const key = JSON.stringify([run.name, branch, zoom, columns, moving]);
  const { value, error } = useFetched(key, (signal) =>
    api.heatmap(run.name, branch, zoom[0], zoom[1], columns, signal),
  );
  return (
    <section class="panel" aria-label="S by scale group">
      <div class="panel-head">
        <h2>S by scale group</h2>
        <span class="says">
          {plural(run.groups, "group")}, largest S in each column{x === "step" ? "" : "; over all steps"}
        </span>
      </div>
      {value && (
        <Heatmap data={value} groups={run.groups} chosen={scale} onChoose={(group) => show({ scale: group })} />
      )}
      {error && <p class="bad pad">{error.message}</p>}
    </section>
  );
}

export function Small({ series, run, detail }: { series: Series; run: RunItem; detail: RunDetail }) {
  const shown = view.value;
  const [width, setWidth] = useState(500);
  const cursor = useSignal<number | null>(null);
  const names = useMemo(() => [run.name], [run.name]);
  const { lines, error } = useSeries(names, askOf(series, width));
  const line = lines.get(run.name);
  const signed = SERIES[series].signed;
  const y = shown.y === "linear" ? "linear" : signed ? "asinh" : "log";
  const marks = useMarks(detail, line, shown.x);
  const missing = line?.missing || line?.columns.max.every((value) => value === null);
  const entry = { id: series, label: SERIES[series].title, ink: ink(0), columns: line?.columns ?? null };
  return (
    <figure class="small">
      <figcaption>
        <b>{SERIES[series].title}</b> <span>{SERIES[series].says}</span>
        <SmallValue entry={entry} cursor={cursor} />
      </figcaption>
      <Chart
        series={series}
        curves={
          line
            ? [
                {
                  id: series,
                  label: series,
                  ink: ink(0),
                  columns: line.columns,
                  spread: run.groups > 1 && shown.scale === null,
                },
              ]
            : []
        }
        marks={marks}
        x={shown.x}
        y={y}
        smoothing={shown.smooth}
        x0={shown.x0}
        x1={shown.x1}
        height={150}
        sync="run"
        cursor={cursor}
        onZoom={(x0, x1) => show(zoomed(shown.x, x0, x1), "push")}
        onReset={resetZoom}
        onWidth={setWidth}
      />
      {missing && (
        <p class="chart-note">
          {series === "base_lr" || series === "effective_lr"
            ? "The trainer doesn't send BASE's learning rate."
            : "No values."}
        </p>
      )}
      {error && <p class="chart-note bad">{error}</p>}
    </figure>
  );
}

function SmallValue({ entry, cursor }: { entry: Entry; cursor: Signal<number | null> }) {
  const at = cursor.value;
  const columns = entry.columns;
  const place = columns && at !== null ? columns.x.findIndex((x) => x >= at) : -1;
  const value = columns ? (place >= 0 ? columns.end[place] : columns.end.at(-1)) : null;
  return <output title={at === null ? "last value" : cursorLabel(view.value.x, at)}>{number(value, 3)}</output>;
}
