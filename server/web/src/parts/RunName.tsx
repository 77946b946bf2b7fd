/** A run's name in little space: the middle is cut, because the last part tells the runs of a sweep apart. */

export function RunName({ run }: { run: string }) {
  const cut = run.lastIndexOf("/");
  const tail = cut > 0 && run.length - cut <= 20 ? run.slice(cut) : "";
  return (
    <span class="run-name">
      <span>{run.slice(0, run.length - tail.length)}</span>
      {tail && <span class="tail">{tail}</span>}
    </span>
  );
}
