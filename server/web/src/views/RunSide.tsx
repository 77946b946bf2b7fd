/** Next to a run's charts: how to resume it, its events, and its branches. */

import { eventColour } from "../charts/paint";
import type { RunDetail, RunEvent, RunItem } from "../data/types";
import { count, moment } from "../format";
import { CopyButton } from "../parts/CopyButton";
import { show } from "../view";
import { words } from "./Table";

/** Zooms to the steps around one. */
export function lookAt(run: RunItem, step: number): void {
  const half = Math.max(50, Math.round(run.step * 0.02));
  show({ x: "step", x0: Math.max(1, step - half), x1: Math.max(2, step + half) }, "push");
}

export function Resume({ detail }: { detail: RunDetail }) {
  return (
    <section class="panel resume">
      <div class="panel-head">
        <h2>Resume</h2>
        {detail.resume && <CopyButton text={detail.resume} />}
      </div>
      {detail.resume ? (
        <pre>{detail.resume}</pre>
      ) : (
        <p class="pad">
          The command that started this run is not known. Start it again with the same run name and its last checkpoint;
          it continues from that step.
        </p>
      )}
    </section>
  );
}

export function Events({ events, run }: { events: readonly RunEvent[]; run: RunItem }) {
  const latestFirst = [...events].reverse();
  return (
    <section class="panel events">
      <div class="panel-head">
        <h2>Events</h2>
        <span class="says">{count(events.length)}</span>
      </div>
      <ol>
        {latestFirst.map((event, i) => (
          <li key={`${event.time} ${i}`}>
            <i class="dot" style={{ background: `var(${eventColour(event.kind)})` }} />
            <div>
              <button type="button" class="link" onClick={() => lookAt(run, event.step)} title="Zoom to these steps">
                {words(event.kind)} <span>at step {count(event.step)}</span>
              </button>
              <time dateTime={new Date(event.time).toISOString()}>{moment(event.time)}</time>
              {event.message && <p>{event.message}</p>}
            </div>
          </li>
        ))}
        {events.length === 0 && <li class="pad">No events: this run comes from an older version of the store.</li>}
      </ol>
    </section>
  );
}

export function Branches({ detail, branch }: { detail: RunDetail; branch: number }) {
  return (
    <section class="panel branches">
      <div class="panel-head">
        <h2>Branches</h2>
        <span class="says">a rewind keeps the abandoned steps</span>
      </div>
      <ul>
        {detail.branches.map((one) => (
          <li key={one.branch}>
            <button
              type="button"
              class={one.branch === branch ? "on" : ""}
              aria-pressed={one.branch === branch}
              onClick={() => show({ branch: one.branch })}
            >
              <b>{one.branch === 0 ? "the run" : `branch ${one.branch}`}</b>
              <span>
                steps {count(one.first_step)} to {count(one.last_step)}
              </span>
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
