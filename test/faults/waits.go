package main

// waits are rows of the catalogue of replies whose waits are minutes and hours, made short: what else a row says of our
// own catalogue stays as it is.
const waits = `  - {name: send-as-denied, action: retry once, wait: 2s}
  - {name: send-as-denied-old, action: retry once, wait: 2s}
  - {name: address-throttled, action: back off tenant, wait: 2s}
  - {name: receive-limit, action: retry, wait: 2s}
  - {name: submission-quota, action: hold sender, wait: 5s}
  - {name: daily-recipients, action: hold sender, wait: 5s}
  - {name: submission-rate, action: hold sender, wait: 5s}
  - {name: tenant-external-limit, action: hold tenant external, wait: 5s}
  - {name: onmicrosoft-limit, action: hold sender external, wait: 5s}
`
