"""A report's page, parsed."""

import json
from html.parser import HTMLParser


class ParsedPage(HTMLParser):
    """The page as a browser's parser sees it: elements with attributes, texts, scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.scripts, self._script = [], [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self._script = attributes.get("id", "code") if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.texts.append(data)
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    @property
    def chart_data(self):
        return json.loads(self.scripts["data"])
