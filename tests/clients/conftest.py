"""Files of clients, which import what is not installed here, or are an application of their own."""

collect_ignore = ["hydra_template", "projects"]
