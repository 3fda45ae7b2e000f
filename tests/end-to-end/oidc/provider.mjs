// An OpenID provider on a port of loopback that the system chooses: `oidc-provider`, with
// clients for the grant of client credentials, JWTs as access tokens, introspection and
// revocation. Run in the folder into which its packages were installed.
//
// A resource (RFC 8707) says what its tokens are like, by its query:
// https://api.example/orders?alg=ES256&ttl=60&format=opaque&aud=other
//
// Beside it, for tests: /-/rotate (new keys; `?keep` publishes the old ones, too), /-/counts
// (requests by path) and /-/forge?kind=none|hs256|other-key: a token that looks like one of ours,
// and is not.

import { createServer } from 'node:http';
import { createHmac, createPublicKey, generateKeyPairSync, randomUUID, sign } from 'node:crypto';
import Provider from 'oidc-provider';

const counts = {};
let keys = [];
let handle;

function newKeys() {
  const jwk = (alg, type, options) => ({
    ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }),
    alg, use: 'sig', kid: `${alg}-${randomUUID()}`,
  });
  const rsa = (alg) => jwk(alg, 'rsa', { modulusLength: 2048 });
  return [
    rsa('RS256'), rsa('PS256'),
    jwk('ES256', 'ec', { namedCurve: 'P-256' }), jwk('ES384', 'ec', { namedCurve: 'P-384' }),
    jwk('EdDSA', 'ed25519'),
  ];
}

function provide(issuer) {
  const client = (id) => ({
    client_id: id, client_secret: `${id}-secret`, redirect_uris: [], response_types: [],
    grant_types: ['client_credentials'], scope: 'orders.read orders.write',
  });
  const provider = new Provider(issuer, {
    clients: ['free', 'other', 'limited', 'unknown', 'gateway'].map(client),
    jwks: { keys },
    scopes: ['orders.read', 'orders.write'],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo(_context, resource) {
          const query = new URL(resource).searchParams;
          return {
            scope: 'orders.read orders.write',
            audience: query.get('aud') ?? 'orders',
            accessTokenTTL: Number(query.get('ttl') ?? 3600),
            accessTokenFormat: query.get('format') ?? 'jwt',
            jwt: { sign: { alg: query.get('alg') ?? 'RS256' } },
          };
        },
      },
    },
  });
  handle = provider.callback();
}

function forge(kind) {
  const now = Math.floor(Date.now() / 1000);
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const key = keys[0];
  const alg = { none: 'none', hs256: 'HS256', 'other-key': 'RS256' }[kind];
  const claims = {
    iss: server.issuer, aud: 'orders', client_id: 'free', sub: 'free', iat: now, exp: now + 3600,
  };
  const signed = `${part({ alg, typ: 'at+jwt', kid: key.kid })}.${part(claims)}`;
  const signature = {
    none: () => '',
    // What a verifier would use that takes the public key for a secret.
    hs256: () => createHmac('sha256', createPublicKey({ key, format: 'jwk' })
      .export({ type: 'spki', format: 'pem' })).update(signed).digest('base64url'),
    'other-key': () => sign('sha256', Buffer.from(signed),
      generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey).toString('base64url'),
  }[kind]();
  return `${signed}.${signature}`;
}

const server = createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  if (url.pathname === '/-/counts') {
    response.end(JSON.stringify(counts));
  } else if (url.pathname === '/-/forge') {
    response.end(forge(url.searchParams.get('kind')));
  } else if (url.pathname === '/-/rotate') {
    keys = [...newKeys(), ...(url.searchParams.has('keep') ? keys : [])];
    provide(server.issuer);
    response.end();
  } else {
    counts[url.pathname] = (counts[url.pathname] ?? 0) + 1;
    handle(request, response);
  }
});
server.keepAliveTimeout = 60_000;
server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', () => {
  server.issuer = `http://127.0.0.1:${server.address().port}`;
  keys = newKeys();
  provide(server.issuer);
  console.log(server.issuer);
});
// Whoever started it has gone when its input ends.
process.stdin.on('end', () => process.exit()).resume();
