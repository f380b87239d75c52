"""The article's two layers side by side: prompt caching at the API, and a model of one's own on a rented device."""
