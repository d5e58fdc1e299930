// The entries of the list: prompt groups of a step, or the responses that a search found.

// All groups of all steps: {step, group, from, to}, responses from..to-1.
function groupsOf(store) {
  const { step, group } = store.responses;
  const groups = [];
  for (let i = 0; i < step.length; i++) {
    const last = groups[groups.length - 1];
    if (last && last.step === step[i] && last.group === group[i]) last.to = i + 1;
    else groups.push({ step: step[i], group: group[i], from: i, to: i + 1 });
  }
  return groups;
}

function meanOf(numbers, from, to) {
  let sum = 0;
  let known = 0;
  for (let i = from; i < to; i++) {
    if (numbers[i] !== null) {
      sum += numbers[i];
      known += 1;
    }
  }
  return known ? sum / known : null;
}

function spreads(rewards, from, to) {
  const known = rewards.slice(from, to).filter((x) => x !== null);
  return known.some((x) => x !== known[0]);
}

const FILTERS = {
  all: () => true,
  unequal: (all, g) => spreads(all.reward, g.from, g.to),
  equal: (all, g) => !spreads(all.reward, g.from, g.to),
  truncated: (all, g) => all.truncated.slice(g.from, g.to).some(Boolean),
};

function said(all, i) {
  return all.response[i] ?? "";
}

// The first response of a group whose prompt or text holds the words; -1 where none does.
function findIn(all, g, words) {
  if (all.prompts[all.prompt[g.from]].toLowerCase().includes(words)) return g.from;
  for (let i = g.from; i < g.to; i++) if (said(all, i).toLowerCase().includes(words)) return i;
  return -1;
}

// query: {step (-1: all), words, filter, order}
function listed(store, groups, query) {
  const all = store.responses;
  const words = query.words.trim().toLowerCase();
  const found = [];
  for (const g of groups) {
    if (query.step >= 0 && g.step !== query.step) continue;
    if (!FILTERS[query.filter](all, g)) continue;
    const hit = words ? findIn(all, g, words) : g.from;
    if (hit >= 0) found.push({ ...g, hit, strength: meanOf(all.strength, g.from, g.to) });
  }
  if (query.order === "strongest") found.sort((a, b) => b.strength - a.strength);
  return found;
}

function drawEntry(store, entry, node, everywhere, words) {
  const all = store.responses;
  const reward = meanOf(all.reward, entry.from, entry.to);
  const head = (everywhere ? "step " + store.meta.steps[entry.step].step + ", " : "") +
    "group " + (entry.group + 1) +
    (reward === null ? "" : " · reward " + shortNumber(reward));
  const prompt = all.prompts[all.prompt[entry.from]];
  const text = words && !prompt.toLowerCase().includes(words) ? said(all, entry.hit) : prompt;
  const at = words ? Math.max(0, text.toLowerCase().indexOf(words) - 20) : 0;
  const shown = snippet(text.slice(at), 90) || "no text recorded";
  node.append(made("b", "", head), made("span", "", shown));
}
