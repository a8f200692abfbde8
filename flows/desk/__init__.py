"""The analysts' web application: routes, templates and sign-in; what pages show and what people do is in tasks/."""
