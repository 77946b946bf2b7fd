/** A component that is drawn again only when one of its properties changes; it saves us preact/compat. */

import { Component, type ComponentType, type FunctionComponent, h } from "preact";

export function memo<P extends object>(inner: FunctionComponent<P>): ComponentType<P> {
  return class Memo extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      const keys = new Set([...Object.keys(this.props), ...Object.keys(next)]) as Set<keyof P>;
      return [...keys].some((key) => (this.props as P)[key] !== next[key]);
    }

    override render() {
      return h(inner, this.props as P);
    }
  };
}
