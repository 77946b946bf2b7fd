/** How long ago a moment was; updates itself. */

import { now } from "../data/live";
import { age, moment, NONE } from "../format";

export function Ago({ time }: { time: number | null }) {
  if (time === null) return <span>{NONE}</span>;
  return (
    <time dateTime={new Date(time).toISOString()} title={moment(time)}>
      {age(now.value - time)}
    </time>
  );
}
