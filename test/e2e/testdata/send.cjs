// Sends one message with nodemailer, of the directory in the first argument. Standard input is JSON as for send.py.
const path = require("node:path");
const fs = require("node:fs");
const nodemailer = require(path.join(process.argv[2], "node_modules", "nodemailer"));

const job = JSON.parse(fs.readFileSync(0, "utf8"));
const transport = nodemailer.createTransport({
  host: job.host,
  port: job.port,
  name: "client.contoso.com",
  secure: job.tls === "implicit",
  requireTLS: job.tls === "starttls",
  ignoreTLS: !job.tls,
  tls: job.cafile ? { ca: fs.readFileSync(job.cafile) } : {},
  auth: job.user ? { user: job.user, pass: job.password } : undefined,
  authMethod: job.mechanism,
});
const envelope = { from: job.from, to: job.to };
const message = job.raw
  ? { envelope, raw: fs.readFileSync(job.raw) }
  : {
      envelope,
      from: { name: job.name, address: job.from },
      to: job.to,
      subject: job.subject,
      text: job.text,
      attachments: job.attachment ? [{ path: job.attachment, filename: "scan.bin" }] : [],
    };
transport.sendMail(message).then(
  () => transport.close(),
  (err) => {
    console.error(err.message);
    process.exitCode = 1;
    transport.close();
  },
);
