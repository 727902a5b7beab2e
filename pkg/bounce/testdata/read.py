"""Reads a message from standard input with Python's email package and prints what it understood as JSON."""
import email, email.header, json, sys

def fields(m):
    # raw, since only unfolding is wanted, not decoding; surrogates stand for the octets of UTF-8 until mend puts them back
    return [[k.lower(), " ".join(str(v).split())] for k, v in m.raw_items()]

def defects(m):
    return [type(d).__name__ for p in m.walk() for d in p.defects]

m = email.message_from_bytes(sys.stdin.buffer.read())

def mend(x):
    if isinstance(x, str):
        return x.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(x, list):
        return [mend(y) for y in x]
    return x

def part(p):
    kind = p.get_content_type()
    out = {"type": kind, "groups": None, "inner": None, "text": None}
    if kind == "message/delivery-status":
        out["groups"] = [fields(g) for g in p.get_payload()]
    elif kind == "message/global-delivery-status":  # not known to the package: a message, whose body is the other groups
        inner = p.get_payload(0)
        rest = inner.get_payload(decode=True).replace(b"\r\n", b"\n").strip(b"\n").split(b"\n\n")
        out["groups"] = [fields(inner)] + [fields(email.message_from_bytes(g)) for g in rest]
    elif p.get_content_maintype() == "message":
        inner = p.get_payload(0)
        out["inner"] = fields(inner)
    else:
        out["text"] = p.get_payload(decode=True).decode("utf-8", "replace").replace("\r\n", "\n")
    out["groups"], out["inner"] = mend(out["groups"]), mend(out["inner"])
    return out

json.dump({
    "fields": mend(fields(m)),
    "subject": str(email.header.make_header(email.header.decode_header(m["Subject"]))),
    "report": m.get_param("report-type"),
    "parts": [part(p) for p in m.get_payload()] if m.is_multipart() else [part(m)],
    "defects": defects(m),
}, sys.stdout)
