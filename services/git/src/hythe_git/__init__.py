"""Git: fetches the commit a webhook or a person named, keeps its source, and asks for its build."""
