"use strict";
// Training groups: filters, siblings side by side, suggestions and the turns they rest on. And the page's beginning.

const groupId = (group) => `g-${group.iteration}-${group.group}`;
const groupTexts = new Map();

function loadGroup(place) {
  if (!groupTexts.has(place)) groupTexts.set(place, unpack(`text-${place}`));
  return groupTexts.get(place);
}

const sum = (group, key) => group.episodes.reduce((total, episode) => total + episode[key], 0);
const won = (group) => group.episodes.filter((episode) => episode.won).length;

const OUTCOMES = {
  "any outcome": () => true,
  "some won, some lost": (g) => won(g) > 0 && won(g) < g.episodes.length,
  "all won": (g) => won(g) === g.episodes.length,
  "all lost": (g) => won(g) === 0,
};
const FLAWS = {
  "any turns": () => true,
  "with flawed actions": (g) => sum(g, "flawed") > 0,
  "with flawed and likely actions": (g) => sum(g, "likely") > 0,
  "with judged actions": (g) => sum(g, "judged") > 0,
};

const isLikely = (turn, index) => turn.flaw && turn.q !== null && turn.q > index.threshold;

// Whether a suggestion's evidence is this turn.
const restsOn = (evidence, turn) => turn.command === evidence.action && turn.flaw === evidence.flaw && turn.observation.startsWith(evidence.observation);

function suggestionsOf(index, group, turn) {
  return index.suggestions.map((made, i) => [made, i]).filter(([made]) => made.iteration === group.iteration && made.evidence.some((e) => restsOn(e, turn)));
}

// The text that the model had before it when it began a turn.
function prompt(turns, at) {
  let from = at;
  while (from > 0 && turns[from].goes_on) from--;
  return turns.slice(from, at).map((turn) => turn.prompt + turn.sampled).join("") + turns[at].prompt;
}

function chips(turn, index) {
  const chip = (text, kind, title) => element("span", { class: `chip ${kind}`, title }, text);
  return element(
    "div",
    { class: "chips" },
    turn.q === null ? null : chip(`q ${turn.q.toFixed(2)}`, isLikely(turn, index) ? "bad" : "", "probability of the action when sampled"),
    turn.advantage === null ? null : chip(`A ${turn.advantage >= 0 ? "+" : MINUS}${Math.abs(turn.advantage).toFixed(2)}`, "", "advantage"),
    turn.label ? chip(turn.label, turn.label, "label") : null,
    turn.flaw ? chip(turn.flaw, "bad", "flaw") : null,
    turn.valid ? null : chip("not understood", "bad", "the environment did not understand it, or nothing came of it"),
  );
}

function judgmentsOf(turn) {
  if (!turn.judgments.length) return null;
  const right = turn.judgments.filter(([label, verdict]) => label === verdict).length;
  const one = ([label, verdict, text]) => element("li", { class: verdict === label ? "right" : "wrong" }, element("strong", null, verdict || "unreadable"), verdict === label ? " ✓" : " ✗", element("pre", null, text));
  return element("details", null, element("summary", null, `judged right ${right} of ${turn.judgments.length}`), element("ul", null, turn.judgments.map(one)));
}

function turnCell(member, at, group, index) {
  const turn = member.turns[at];
  if (!turn) return element("td", { class: "none" });
  const exact = element("details", { class: "prompt" }, element("summary", null, `prompt, ${plural(turn.range[1] - turn.range[0], "token")}`));
  exact.addEventListener("toggle", () => exact.open && exact.childElementCount === 1 && exact.append(element("pre", null, prompt(member.turns, at))));
  const links = suggestionsOf(index, group, turn).map(([made, i]) => element("a", { href: `#suggestion-${i}`, class: "link" }, `→ ${made.text}`));
  const cell = element(
    "td",
    { class: isLikely(turn, index) ? "likely" : turn.flaw ? "flawed" : "" },
    element("div", { class: "observation" }, turn.observation),
    element("code", { class: "action" }, turn.action),
    chips(turn, index),
    judgmentsOf(turn),
    exact,
    links,
  );
  cell.querySelector(".observation").addEventListener("click", (event) => event.currentTarget.classList.toggle("whole"));
  return cell;
}

// All members of a group, a column each, turn by turn.
function groupTable(group, members, index) {
  const head = (member) =>
    element("th", { scope: "col" }, element("span", { class: member.won ? "good" : "bad" }, member.won ? "✓ won" : "✗ lost"), ` member ${member.sample}`, element("div", { class: "facts" }, `return ${number(member.reward)} · ${plural(member.turns.length, "turn")} · ${member.finish}`));
  const most = Math.max(...members.map((member) => member.turns.length));
  const rows = Array.from({ length: most }, (_, at) => element("tr", null, element("th", { scope: "row" }, String(at + 1)), members.map((member) => turnCell(member, at, group, index))));
  return element("table", { class: "siblings" }, element("thead", null, element("tr", null, element("th", null, "turn"), members.map(head))), element("tbody", null, rows));
}

function browserView(index) {
  const choose = (label, names) => element("select", { "aria-label": label }, names.map((name) => element("option", { value: name }, name)));
  const outcome = choose("outcome", Object.keys(OUTCOMES));
  const flaws = choose("flaws", Object.keys(FLAWS));
  const kinds = ["all task types", ...[...new Set(index.groups.map((g) => g.kind))].sort()];
  const kind = choose("task type", kinds);
  const iterations = [...new Set(index.groups.map((g) => g.iteration))];
  const iteration = choose("iteration", ["all iterations", ...iterations.map(String)]);
  const search = element("input", { type: "search", placeholder: "task contains …", "aria-label": "task contains" });
  const count = element("p", { class: "facts", role: "status" });
  const list = element("div", { class: "list" });
  const view = element("div", { class: "group", tabindex: "-1" });
  let current = null;

  const matching = () =>
    index.groups.filter((g) => OUTCOMES[outcome.value](g) && FLAWS[flaws.value](g) && (kind.selectedIndex === 0 || g.kind === kind.value) && (iteration.selectedIndex === 0 || String(g.iteration) === iteration.value) && g.task.toLowerCase().includes(search.value.toLowerCase()));
  const item = (g) =>
    element("button", { type: "button", "data-group": groupId(g), "aria-pressed": String(g === current), onclick: () => open(g) }, element("span", null, `${g.iteration}.${g.group} `), element("strong", null, g.kind), element("span", { class: "task" }, g.task), element("span", { class: "facts" }, `${won(g)} of ${g.episodes.length} won · ${plural(sum(g, "flawed"), "flaw")}, ${sum(g, "likely")} likely`));
  const fill = () => {
    const found = matching();
    const all = found.length === index.groups.length ? `${plural(found.length, "group")}` : `${found.length} of ${plural(index.groups.length, "group")}`;
    const rest = index.groups.length < index.of_groups ? `; the page holds these of the run's ${plural(index.of_groups, "group")} (${plural(index.of_turns, "turn")}), spread over all iterations: the rest is in trajectories.sqlite` : "";
    count.textContent = `${all}${rest}.`;
    list.replaceChildren(...found.map(item));
    if (!found.includes(current)) found.length ? open(found[0]) : view.replaceChildren();
  };
  const open = async (group) => {
    current = group;
    list.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.group === groupId(group))));
    const pressed = list.querySelector("[aria-pressed=true]");
    if (pressed) list.scrollTop = Math.max(0, Math.min(pressed.offsetTop - list.offsetTop, Math.max(list.scrollTop, pressed.offsetTop - list.offsetTop + pressed.offsetHeight - list.clientHeight)));
    const members = await loadGroup(index.groups.indexOf(group));
    if (current !== group) return members;
    const suggestions = members[0].suggestions;
    view.id = groupId(group);
    view.replaceChildren(
      element("h3", null, `Iteration ${group.iteration}, group ${group.group}: ${group.task}`),
      element("p", { class: "facts" }, suggestions.length ? `Suggestions in the prompt: ${suggestions.map((s) => `“${s}”`).join(" ")}` : "No suggestions in the prompt."),
      element("div", { class: "scroll" }, groupTable(group, members, index)),
    );
    return members;
  };
  [outcome, flaws, kind, iteration].forEach((control) => control.addEventListener("change", fill));
  search.addEventListener("input", fill);
  const show = async (group, at) => {
    [outcome, flaws, kind, iteration].forEach((control) => (control.selectedIndex = 0));
    search.value = "";
    current = group;
    fill();
    await open(group);
    const cell = view.querySelectorAll("tbody tr")[at[1]].children[at[0] + 1];
    cell.classList.add("found");
    cell.scrollIntoView({ block: "center", inline: "center" });
  };
  const whole = element("div", { class: "browser" }, element("div", { class: "controls" }, outcome, flaws, kind, iteration, search), count, element("div", { class: "panes" }, list, view));
  fill();
  return { element: whole, show };
}

// Finds a turn that the evidence speaks of, and shows it.
async function findEvidence(index, browser, made, evidence) {
  for (const [place, group] of index.groups.entries()) {
    if (group.iteration !== made.iteration) continue;
    const members = await loadGroup(place);
    for (const [column, member] of members.entries()) {
      const row = member.turns.findIndex((turn) => restsOn(evidence, turn));
      if (row >= 0) {
        await browser.show(group, [column, row]);
        return true;
      }
    }
  }
  return false;
}

function suggestionsView(index, browser) {
  const item = (made) => (e) => {
    const q = (e.sampled + e.resampled) / 2;
    const action = element("button", { type: "button", class: "link" }, e.action);
    action.addEventListener("click", async () => {
      if (!(await findEvidence(index, browser, made, e))) {
        action.disabled = true;
        action.title = "this page does not hold its group; trajectories.sqlite does";
        action.after(" (not on this page)");
      }
    });
    return [element("td", null, action), e.flaw, String(e.count), q.toFixed(2), e.sampled.toFixed(2), e.resampled.toFixed(2), signed(e.advantage.toFixed(2)), element("td", { class: "quote" }, e.observation)];
  };
  const one = (made, i) =>
    element("details", { id: `suggestion-${i}`, class: "suggestion" }, element("summary", null, element("span", { class: "facts" }, `after iteration ${made.iteration} `), element("strong", null, made.text), element("span", { class: "facts" }, ` ${plural(made.evidence.length, "action")}`)), element("div", { class: "scroll" }, table(["action", "flaw", "times", "q", "sampled", "drawn again", "advantage", "shown"], made.evidence.map(item(made)), { class: "numbers evidence" })));
  return index.suggestions.map(one);
}

// A link to something in closed details opens these.
function openTarget() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
}

async function begin() {
  const data = await unpack("data");
  place("[data-figures]", (parent) => drawAll(data[parent.dataset.figures] || [], parent));
  place("[data-table=heat]", (parent) => parent.append(...heatTable(data.heat)));
  place("[data-table=types]", (parent) => parent.append(typeTable(data.types)));
  place("[data-view=confusion]", (parent) => parent.append(confusionView(data.confusion)));
  place("[data-subject]", (parent) => {
    const [subject, details] = [data.subjects[parent.dataset.subject], parent.closest("details")];
    const show = () => details.open && drawSubject(subject, parent);
    details.addEventListener("toggle", show);
    show();
  });
  place("[data-view=browser]", (parent) => {
    const browser = browserView(data.browser);
    parent.append(browser.element);
    place("[data-view=suggestions]", (where) => where.append(...suggestionsView(data.browser, browser)));
  });
  place("#smoothing", (slider) =>
    slider.addEventListener("input", () => {
      smoothing = Number(slider.value);
      drawn.forEach((figure) => figure.smooth());
    }),
  );
  window.addEventListener("hashchange", openTarget);
  openTarget();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

begin();
