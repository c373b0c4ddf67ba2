"""Model cards: data in `published.json`, text in `card.md.jinja`, joined by `bossnet_zoo.export.cards`."""
