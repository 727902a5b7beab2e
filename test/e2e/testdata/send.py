"""Sends one message with smtplib. Standard input is JSON: host, port, from, to, and either raw (a file) or subject,
name, text and attachment (a file or null); for a login also cafile, user, password, mechanism and tls (starttls or
implicit)."""
import json
import smtplib
import ssl
import sys
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid
from datetime import datetime, timezone

job = json.load(sys.stdin)
context = ssl.create_default_context(cafile=job.get("cafile")) if job.get("tls") else None
if job.get("tls") == "implicit":
    server = smtplib.SMTP_SSL(job["host"], job["port"], "client.contoso.com", context=context)
else:
    server = smtplib.SMTP(job["host"], job["port"], "client.contoso.com")
with server:
    if job.get("tls") == "starttls":
        server.starttls(context=context)
        server.ehlo()
    if job.get("user"):
        server.ehlo_or_helo_if_needed()
        server.user, server.password = job["user"], job["password"]
        server.auth(job["mechanism"], getattr(server, "auth_" + job["mechanism"].lower()))
    if job.get("raw"):
        with open(job["raw"], "rb") as f:
            data = f.read()
        server.sendmail(job["from"], job["to"], data, mail_options=job.get("options", []))
    else:
        message = EmailMessage(policy=SMTP)
        user, domain = job["from"].split("@")
        message["From"] = Address(job["name"], user, domain)
        message["To"] = ", ".join(job["to"])
        message["Subject"] = job["subject"]
        message["Date"] = format_datetime(datetime.now(timezone.utc))
        message["Message-ID"] = make_msgid(domain="contoso.com")
        message.set_content(job["text"])
        if job.get("attachment"):
            with open(job["attachment"], "rb") as f:
                message.add_attachment(f.read(), maintype="application", subtype="octet-stream", filename="scan.bin")
        server.send_message(message, job["from"], job["to"])
