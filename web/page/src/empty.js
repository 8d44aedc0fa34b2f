// No agent yet: the page teaches how to get one.
import { h } from "./dom.js";

// The address that an agent on the viewer's side of the network would use.
function endpoint(grpc) {
  const port = grpc.slice(grpc.lastIndexOf(":") + 1);
  const host = grpc.slice(0, -port.length - 1);
  const everywhere = host === "0.0.0.0" || host === "[::]" || host === "";
  return everywhere ? `${location.hostname}:${port}` : grpc;
}

export class Empty {
  #grpc = "";

  constructor(root) {
    this.root = root;
  }

  show(totals) {
    if (totals.grpc === this.#grpc) return;
    this.#grpc = totals.grpc;
    const address = endpoint(totals.grpc);
    const code = `import agent_stub\nmon = agent_stub.start("my-agent", endpoint="${address}")`;
    const copy = h("button", { type: "button" }, "copy");
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code);
      copy.textContent = "copied";
    });
    this.root.replaceChildren(
      h("h1", {}, "No agent has said hello yet"),
      h("p", {}, "This daemon listens for agents at ", h("code", {}, address), ". Two lines in an agent's Python connect it:"),
      h("div", { class: "code" }, h("pre", {}, h("code", {}, code)), navigator.clipboard ? copy : null),
      h("p", {}, "It appears here within a second. Its tasks are told apart, timed and counted with"),
      h("div", { class: "code" }, h("pre", {}, h("code", {}, 'with mon.task("search"):\n    ...'))),
      h("p", { class: "quiet-note" }, "The address may also come from the environment: ", h("code", {}, `COLLECTORD_ENDPOINT=${address}`), "."),
    );
  }
}
