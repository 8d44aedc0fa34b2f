// The keyboard, and the sheet that explains it.
import { h } from "./dom.js";

const HELP = [
  ["/", "filter agents"],
  ["j k  ↓ ↑", "next, previous agent"],
  ["Enter", "open the agent"],
  ["Esc", "back: clear the filter, leave the agent"],
  ["1 … 5", "5 minutes … 7 days (in an agent)"],
  ["l", "follow now, or stop (in an agent)"],
  ["?", "this sheet"],
];

export function fillHelp(dialog) {
  dialog.append(
    h("h2", { id: "help-title" }, "Keyboard"),
    h("dl", {}, ...HELP.map(([keys, does]) => h("div", {}, h("dt", {}, ...keys.split(/\s+/).map((key) => (key === "…" ? " … " : h("kbd", {}, key)))), h("dd", {}, does)))),
    h("p", {}, "In the filter, words are looked for in names, states, versions, reasons and labels; ", h("code", {}, "host.name=web-3"), " asks for that label, ", h("code", {}, "state=stuck"), " for that state. In charts, drag to zoom."),
    h("button", { type: "button", onclick: () => dialog.close() }, "close"),
  );
}

function typing(target) {
  return target.matches("input, select, textarea");
}

// page: {search, help, table, view, time, ranges}
export function listen(page) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || page.help.open) return;
    if (event.key === "Escape") escape(page, event);
    else if (!typing(event.target)) press(page, event);
    else if (event.target === page.search && (event.key === "ArrowDown" || event.key === "Enter")) {
      event.preventDefault();
      page.table.move(0);
    }
  });
}

function escape(page, event) {
  const { view, search } = page;
  if (event.target === search) {
    search.value = "";
    search.blur();
    view.go({ q: "" }, { replace: true });
  } else if (view.agent) view.go({ agent: "", range: "", from: "", to: "" });
  else if (view.q) view.go({ q: "" }, { replace: true });
  else document.activeElement?.blur();
}

function press(page, event) {
  const { view } = page;
  const by = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  if (event.key === "/") page.search.focus();
  else if (event.key === "?") page.help.showModal();
  else if (by && !view.agent) page.table.move(by);
  else if (view.agent && event.key === "l") page.time.toggle();
  else if (view.agent && page.ranges[event.key - 1]) view.go({ range: page.ranges[event.key - 1], from: "", to: "" }, { replace: true });
  else return;
  event.preventDefault();
}
