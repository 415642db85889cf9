"""Serves a loaded model over HTTP, as clients of OpenAI's interface expect it, and as a page for a browser.

`app` joins the parts. A request is read by `requests`, its messages by `conversation`, answered by `service`,
and written by the module of its endpoint.
"""
