"""Build settings that the command line can change."""

FlagInfo = provider(
    doc = "What a build setting is set to.",
    fields = ["value"],
)

def _flag_impl(ctx):
    return FlagInfo(value = ctx.build_setting_value)

bool_flag = rule(
    implementation = _flag_impl,
    build_setting = config.bool(flag = True),
)

string_list_flag = rule(
    implementation = _flag_impl,
    build_setting = config.string_list(flag = True),
)
