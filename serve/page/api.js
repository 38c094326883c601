// The server's operations. A token comes in the page's address once, and is kept for this tab.

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}
const token = sessionStorage.getItem("token");

// `path` as an address that carries the token, for what cannot send it in a header.
export function address(path, parameters = {}) {
  const query = new URLSearchParams(parameters);
  if (token) query.set("token", token);
  return query.size ? `${path}?${query}` : path;
}

export function socketAddress(path, parameters) {
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${address(path, parameters)}`;
}

// The answer, parsed; an Error with the server's own words, and its status, where it refuses.
export async function ask(method, path, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const file = body instanceof Blob;
  if (body !== undefined) headers["content-type"] = file ? "application/octet-stream" : "application/json";
  const content = body === undefined || file ? body : written(body);
  const response = await fetch(path, { method, headers, body: content });
  if (response.status === 204) return null;
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

// A seed stays the digits that were typed: a number of JavaScript has 53 bits.
function written(body) {
  const { seed, ...others } = body;
  const text = JSON.stringify(others);
  if (seed === undefined || seed === "") return text;
  return `${text.slice(0, -1)}${text === "{}" ? "" : ","}"seed":${BigInt(seed)}}`;
}
