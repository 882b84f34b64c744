"""The web page: `server` (HTTP), `prediction` (what it computes, and the limits), `static` (the page itself)."""
