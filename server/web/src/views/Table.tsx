/** The table of runs: only the rows in view exist, so 1,000 runs are as fast as ten. */

import { computed } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Ink } from "../charts/palette";
import { runs } from "../data/live";
import { byWeight, type Row, type SortKey } from "../data/order";
import { hasWord, labelWord, toggleWord } from "../data/query";
import { sparks, want } from "../data/sparks";
import { type RunItem, type Spark, STATUSES } from "../data/types";
import { count, NONE, number, plural } from "../format";
import { Ago } from "../parts/Ago";
import { Icon, StatusIcon } from "../parts/icons";
import { Swatch } from "../parts/Legend";
import { memo } from "../parts/memo";
import { RunName } from "../parts/RunName";
import { Sparkline } from "../parts/Sparkline";
import { runAddress, show, view } from "../view";
import { focused, selectAll, toggleClosed, togglePinned, toggleSelected } from "./actions";

const OVERSCAN = 8;

/** The number of projects; names show theirs if there are several. */
const projects = computed(() => new Set([...runs.value.values()].map((run) => run.project)).size);

interface Props {
  readonly rows: readonly Row[];
  /** Names on the chart. */
  readonly inks: ReadonlyMap<string, Ink>;
  /** Values of the groups on the chart. */
  readonly groupInks: ReadonlyMap<string, Ink>;
}

const COLUMNS: readonly {
  readonly key: SortKey | "";
  readonly title: string;
  readonly class: string;
  readonly down: boolean;
}[] = [
  { key: "name", title: "Run", class: "c-name", down: false },
  { key: "needs", title: "Needs", class: "c-needs", down: false },
  { key: "step", title: "Step", class: "c-step num", down: true },
  { key: "S", title: "S now", class: "c-s num", down: true },
  { key: "", title: "S so far", class: "c-spark", down: false },
  { key: "lr", title: "Effective lr", class: "c-lr num", down: true },
  { key: "age", title: "Last step", class: "c-age num", down: false },
  { key: "", title: "Labels", class: "c-labels", down: false },
];

export function Table({ rows, inks, groupInks }: Props) {
  const body = useRef<HTMLDivElement>(null);
  const [span, setSpan] = useState<readonly [number, number]>([0, 40]);
  const height = useRowHeight(body);

  useLayoutEffect(() => {
    const look = (): void => {
      const element = body.current;
      if (!element) return;
      const scroller = element.parentElement!.getBoundingClientRect();
      const top = Math.max(0, Math.max(scroller.top, 0) - element.getBoundingClientRect().top);
      const seen = Math.max(0, Math.min(scroller.bottom, innerHeight) - Math.max(scroller.top, 0));
      const first = Math.max(0, Math.floor(top / height) - OVERSCAN);
      const last = Math.ceil((top + seen) / height) + OVERSCAN;
      setSpan((before) => (before[0] === first && before[1] === last ? before : [first, last]));
    };
    look();
    addEventListener("scroll", look, { capture: true, passive: true });
    addEventListener("resize", look);
    return () => {
      removeEventListener("scroll", look, { capture: true });
      removeEventListener("resize", look);
    };
  }, [height, rows.length]);

  const { query, group } = view.value;
  const sorted = `${view.value.sort.key} ${view.value.sort.down}`;
  useLayoutEffect(() => {
    if (body.current) body.current.parentElement!.scrollTop = 0;
  }, [query, group, sorted]);

  const shown = rows.slice(span[0], span[1]);
  const names = shown.flatMap((row) => (row.kind === "run" ? [row.run.name] : []));
  useEffect(() => want(names), [names.join(",")]);

  const selected = new Set(view.value.selected);
  const active = focused.value;
  useEffect(() => scrollTo(body.current, rows, active, height), [active]);

  return (
    <div class="table" role="table" aria-label="Runs" aria-rowcount={rows.length + 1}>
      <Head />
      <div class="table-scroll">
        <div class="table-body" ref={body} style={{ height: `${rows.length * height}px` }}>
          {shown.map((row, i) => {
            const index = span[0] + i;
            const place = { top: index * height, index: index + 2 };
            return row.kind === "group" ? (
              <GroupRow key={`group ${row.value}`} row={row} ink={groupInks.get(row.value)} {...place} />
            ) : (
              <RunRow
                key={row.run.name}
                run={row.run}
                pinned={row.pinned}
                chosen={selected.has(row.run.name)}
                active={active === row.run.name}
                ink={inks.get(row.run.name)}
                spark={sparks.value.get(row.run.name)}
                query={view.value.query}
                {...place}
              />
            );
          })}
        </div>
      </div>
    </div>
  );
}

function useRowHeight(body: { current: HTMLDivElement | null }): number {
  const [height, setHeight] = useState(34);
  useLayoutEffect(() => {
    const look = (): void => {
      if (body.current) setHeight(Number.parseFloat(getComputedStyle(body.current).getPropertyValue("--row")) || 34);
    };
    look();
    addEventListener("resize", look);
    return () => removeEventListener("resize", look);
  }, []);
  return height;
}

function scrollTo(body: HTMLDivElement | null, rows: readonly Row[], name: string | null, height: number): void {
  const index = rows.findIndex((row) => row.kind === "run" && row.run.name === name);
  if (!body || index < 0) return;
  const scroller = body.parentElement!;
  const inner = scroller.scrollHeight > scroller.clientHeight + 1;
  const top = index * height;
  if (inner) {
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + height > scroller.scrollTop + scroller.clientHeight)
      scroller.scrollTop = top + height - scroller.clientHeight;
    return;
  }
  const at = body.getBoundingClientRect().top + top;
  if (at < 60 || at + height > innerHeight) scrollBy(0, at - innerHeight / 2);
}

function Head() {
  const { sort } = view.value;
  const turn = (key: SortKey, down: boolean): void =>
    show({ sort: { key, down: sort.key === key ? !sort.down : down } });
  return (
    <div class="row head" role="row">
      <span role="columnheader" class="c-check">
        <span class="sr">On the chart</span>
      </span>
      {COLUMNS.map(({ key, title, class: name, down }) => (
        <span
          key={title}
          role="columnheader"
          class={name}
          aria-sort={key && sort.key === key ? (sort.down ? "descending" : "ascending") : undefined}
        >
          {key ? (
            <button type="button" onClick={() => turn(key, down)}>
              {title}
              <i class="sort-mark" aria-hidden="true">
                {sort.key === key ? (sort.down ? "↓" : "↑") : ""}
              </i>
            </button>
          ) : (
            title
          )}
        </span>
      ))}
      <span role="columnheader" class="c-pin">
        <span class="sr">Pinned</span>
      </span>
    </div>
  );
}

interface RunRowProps {
  readonly run: RunItem;
  readonly pinned: boolean;
  readonly chosen: boolean;
  readonly active: boolean;
  readonly ink: Ink | undefined;
  readonly spark: Spark | undefined;
  readonly query: string;
  readonly top: number;
  readonly index: number;
}

const RunRow = memo(function RunRow({ run, pinned, chosen, active, ink, spark, query, top, index }: RunRowProps) {
  const needs = byWeight(run.needs);
  const need = needs[0];
  const row = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (active && mayTakeFocus()) row.current?.querySelector("a")?.focus({ preventScroll: true });
  }, [active]);
  return (
    <div
      ref={row}
      class={`row run ${active ? "active" : ""} ${need ? "needy" : ""} ${pinned ? "pinned" : ""}`}
      role="row"
      aria-rowindex={index}
      data-name={run.name}
      style={{ transform: `translateY(${top}px)` }}
      onClick={(event) => {
        if (!(event.target as Element).closest("a, button")) focused.value = run.name;
      }}
    >
      <span role="cell" class="c-check">
        <button
          type="button"
          class={`check ${chosen ? "on" : ""}`}
          role="checkbox"
          aria-checked={chosen}
          aria-label={`Show ${run.run} on the chart`}
          onClick={() => toggleSelected(run.name)}
        >
          {ink ? <Swatch ink={ink} /> : <i />}
        </button>
      </span>
      <span role="cell" class="c-name">
        <span class="status" title={run.status_message || run.status}>
          <StatusIcon status={run.status} />
          <span class="sr">{run.status}</span>
        </span>
        <a href={runAddress(run.name)} title={run.name}>
          {projects.value > 1 && <span class="project">{run.project}/</span>}
          <RunName run={run.run} />
        </a>
      </span>
      <span role="cell" class="c-needs">
        {need ? (
          <span class="need" title={needs.map((one) => one.message).join("\n")}>
            {needs.slice(0, 2).map((one) => (
              <b key={one.kind}>{words(one.kind)}</b>
            ))}
            {needs.length > 2 && <i>+{needs.length - 2}</i>}
            <span>{need.message}</span>
          </span>
        ) : (
          <span class="calm">{run.status}</span>
        )}
      </span>
      <span role="cell" class="c-step num">
        {count(run.step)}
      </span>
      <span role="cell" class="c-s num">
        {number(run.S)}
      </span>
      <span role="cell" class="c-spark">
        <Sparkline spark={spark} label={`S of ${run.run}`} />
      </span>
      <span role="cell" class="c-lr num">
        {number(run.effective_lr)}
      </span>
      <span role="cell" class="c-age num">
        <Ago time={run.step_time} />
      </span>
      <span role="cell" class="c-labels">
        {Object.entries(run.labels)
          .sort()
          .map(([key, value]) => (
            <LabelChip key={key} name={key} value={value} query={query} />
          ))}
      </span>
      <span role="cell" class="c-pin">
        <button
          type="button"
          class={`ghost small pin ${pinned ? "on" : ""}`}
          aria-pressed={pinned}
          aria-label={pinned ? `Unpin ${run.run}` : `Pin ${run.run} to the top`}
          onClick={() => togglePinned(run.name)}
        >
          <Icon name="pin" />
        </button>
      </span>
    </div>
  );
});

/** Whether the keyboard's row may take the focus: not while the user types or is in a menu. */
function mayTakeFocus(): boolean {
  const at = document.activeElement;
  return at === null || at === document.body || at.closest(".table") !== null;
}

export const words = (kind: string): string => kind.replaceAll("_", " ");

export function LabelChip({
  name,
  value,
  query,
  children,
}: {
  name: string;
  value: string;
  query: string;
  children?: ComponentChildren;
}) {
  const word = labelWord(name, value);
  return (
    <button
      type="button"
      class={`chip ${hasWord(query, word) ? "on" : ""}`}
      title={`Show only runs with ${name}=${value}`}
      onClick={() => show({ query: toggleWord(query, word) })}
    >
      <span>{name}</span>
      {value}
      {children}
    </button>
  );
}

function GroupRow({
  row,
  ink,
  top,
  index,
}: {
  row: Row & { kind: "group" };
  ink: Ink | undefined;
  top: number;
  index: number;
}) {
  const needy = row.runs.filter((run) => run.needs.length > 0).length;
  const scales = row.runs.flatMap((run) => (run.S === null ? [] : [run.S])).sort((a, b) => a - b);
  return (
    <div class="row group" role="row" aria-rowindex={index} style={{ transform: `translateY(${top}px)` }}>
      <button type="button" class="fold" aria-expanded={row.open} onClick={() => toggleClosed(row.value)}>
        <Icon name="chevron" />
        {ink && <Swatch ink={ink} />}
        <b>{view.value.group}</b> {row.value}
      </button>
      <span class="group-facts">
        {plural(row.runs.length, "run")}
        {STATUSES.map((status) => {
          const n = row.runs.filter((run) => run.status === status).length;
          return n > 0 ? (
            <span key={status} title={`${n} ${status}`}>
              <StatusIcon status={status} />
              {n}
            </span>
          ) : null;
        })}
        {needy > 0 && <span class="bad">{needy} need you</span>}
        <span>median S {scales.length ? number(scales[scales.length >> 1]) : NONE}</span>
      </span>
      <button type="button" class="ghost small" onClick={() => selectAll(row.runs)}>
        select all
      </button>
    </div>
  );
}
