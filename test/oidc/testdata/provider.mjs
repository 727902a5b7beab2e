// Runs oidc-provider as a tenant of Entra ID: node provider.mjs MODULES < options.json. It prints its port, and ends with
// its input. The provider does all the work; what is here gives its endpoints Entra ID's paths, its ID tokens Entra ID's
// claims, and asks for consent by itself where offline_access is asked for, as Entra ID does, also where relayd says
// prompt=select_account, which the provider does not know.
import http from 'node:http';
import path from 'node:path';
import { once } from 'node:events';
import { pathToFileURL } from 'node:url';

const { Provider } = await import(pathToFileURL(path.join(process.argv[2], 'node_modules/oidc-provider/lib/index.js')));

let input = '';
for await (const chunk of process.stdin) {
  input += chunk;
  if (input.endsWith('\n')) break;
}
const { tenant, send, app, clients } = JSON.parse(input);

const server = http.createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const base = `http://127.0.0.1:${server.address().port}/${tenant}`;

const provider = new Provider(`${base}/v2.0`, {
  clients,
  scopes: ['openid', 'offline_access', send, app],
  claims: { openid: ['sub', 'tid', 'oid'], profile: ['preferred_username'] },
  conformIdTokenClaims: false,
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, tid: id.endsWith('@fabrikam.com') ? 'fabrikam' : tenant, oid: `object of ${id}`, preferred_username: id }),
  }),
  pkce: { required: () => true },
  rotateRefreshToken: true,
  features: { clientCredentials: { enabled: true }, deviceFlow: { enabled: true }, devInteractions: { enabled: true } },
  routes: {
    authorization: '/oauth2/v2.0/authorize', token: '/oauth2/v2.0/token', device_authorization: '/oauth2/v2.0/devicecode',
    code_verification: '/device', jwks: '/discovery/v2.0/keys',
  },
  interactions: { url: (ctx, interaction) => `/${tenant}/interaction/${interaction.uid}` },
  ttl: { AccessToken: 3600, ClientCredentials: 3600, DeviceCode: 600, IdToken: 3600, RefreshToken: 86400 },
});
const handle = provider.callback();

server.on('request', async (req, res) => {
  let url = new URL(req.url, base);
  if (!url.pathname.startsWith(`/${tenant}/`)) {
    res.writeHead(404).end();
    return;
  }
  url.pathname = url.pathname.slice(tenant.length + 1).replace(/^\/v2\.0\/\.well-known/, '/.well-known');
  if (url.pathname === '/oauth2/v2.0/authorize') url.searchParams.set('prompt', 'consent');
  if (url.pathname === '/oauth2/v2.0/devicecode') {
    let body = '';
    for await (const chunk of req) body += chunk;
    req.body = { ...Object.fromEntries(new URLSearchParams(body)), prompt: 'consent' };
  }
  req.url = url.pathname + url.search;
  req.originalUrl = `/${tenant}${req.url}`; // where the provider is mounted is read from it
  handle(req, res);
});
console.log(server.address().port);
process.stdin.resume();
await once(process.stdin, 'end');
process.exit(0);
