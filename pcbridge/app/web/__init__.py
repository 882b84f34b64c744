"""The web page: `server` (HTTP), `visit` (what it computes, and the limits), `static` (the page itself)."""
