// A turn as a stream, in any browser (or Node): an async generator of {name, id, data}.
// One key per question makes a retry harmless; Last-Event-ID reads a broken stream on.

const ATTEMPTS = 5;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export async function* ask(base, session, message, headers = {}) {
  const key = crypto.randomUUID();
  let turn = null;
  let last = "";
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    if (attempt) await pause(200 * 2 ** attempt);
    try {
      const response = turn
        ? await fetch(`${base}/v1/turns/${turn}/events`, {
            headers: { ...headers, "Last-Event-ID": last },
          })
        : await fetch(`${base}/v1/sessions/${session}/turns`, {
            method: "POST",
            headers: { ...headers, "Content-Type": "application/json", "Idempotency-Key": key },
            body: JSON.stringify({ message, stream: true }),
          });
      if (response.status === 429 || response.status === 503) {
        await pause(1000 * Number(response.headers.get("Retry-After") ?? 1));
        continue;
      }
      if (!response.ok) {
        const problem = await response.json();
        if (problem.code === "turn_running") {
          turn = problem.turn_id; // the first try did arrive: read its events
          continue;
        }
        yield { name: "error", id: last, data: { code: problem.code, message: problem.detail } };
        return;
      }
      for await (const event of events(response.body)) {
        turn = event.data.turn_id ?? turn;
        last = event.id;
        yield event;
        if (event.name === "done" || event.name === "error") return;
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // a TypeError is fetch's broken network
    }
  }
  yield { name: "error", id: last, data: { code: "network", message: "the service is away" } };
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = {};
      for (const line of block.split("\n")) {
        const at = line.indexOf(": ");
        if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2); // a line ": ping" has no name
      }
      if (fields.event) yield { name: fields.event, id: fields.id, data: JSON.parse(fields.data) };
    }
  }
}
