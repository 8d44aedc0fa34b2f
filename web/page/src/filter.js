// The search box: words are looked for in all that is known of an agent, label=value must hold for that label.
// Quotes keep spaces together: host.name="rack 3"

const TOKEN = /([^\s="]+)=("[^"]*"|\S*)|"([^"]*)"|(\S+)/g;

export function parse(query) {
  const tests = [];
  for (const [, label, value, quoted, word] of query.matchAll(TOKEN)) {
    if (label) tests.push(equals(label.toLowerCase(), value.replaceAll('"', "").toLowerCase()));
    else tests.push(contains((quoted ?? word).toLowerCase()));
  }
  return (row) => tests.every((test) => test(row));
}

function equals(label, value) {
  return (row) => {
    if (label === "agent" || label === "instance" || label === "state" || label === "version") {
      return row[label].toLowerCase() === value;
    }
    return Object.entries(row.labels).some(([name, is]) => name.toLowerCase() === label && String(is).toLowerCase() === value);
  };
}

function contains(word) {
  return (row) =>
    [row.agent, row.instance, row.state, row.version, row.reason, ...Object.values(row.labels)].some((text) =>
      String(text).toLowerCase().includes(word),
    );
}

export function term(label, value) {
  return /[\s"]/.test(value) ? `${label}="${value.replaceAll('"', "")}"` : `${label}=${value}`;
}

// The query with this term put in, or taken out where it stands already; other terms of the label give way.
export function toggled(query, label, value) {
  const wanted = term(label, value);
  const others = [];
  let had = false;
  for (const [token, name] of query.matchAll(TOKEN)) {
    if (token === wanted) had = true;
    else if (name !== label) others.push(token);
  }
  return (had ? others : [...others, wanted]).join(" ");
}
