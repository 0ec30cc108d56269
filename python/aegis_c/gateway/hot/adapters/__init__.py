"""What each provider's dialect needs to know: paths, checks of a request, facts of a reply."""
