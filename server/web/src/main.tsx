import { render } from "preact";
import { App } from "./app";
import { start } from "./data/live";
import { followKeys } from "./keys";
import { followTheme } from "./theme";
import { followAddress } from "./view";
import "uplot/dist/uPlot.min.css";

followTheme();
followAddress();
followKeys();
start();
render(<App />, document.getElementById("app")!);
