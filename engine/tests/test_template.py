"""Go templates as Docker's documentation uses them for ``--format``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import ConfigError
from transom_engine.cli.template import Template
from transom_engine.model import Config, Container, HostConfig, PortBinding

INSPECT = {
    "Id": "0123456789ab",
    "Name": "web",
    "State": {"Running": True, "Pid": 4242, "Health": None},
    "Config": {"Image": "nginx", "Cmd": ["nginx", "-g", "daemon off;"], "Labels": {"b": "2", "a": "1"}},
    "NetworkSettings": {
        "Networks": {"bridge": {"IPAddress": "172.17.0.2"}, "front": {"IPAddress": "172.18.0.3"}},
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "443/tcp": None},
    },
    "Mounts": [{"Source": "/a", "Destination": "/b"}, {"Source": "/c", "Destination": "/d"}],
    "Load": 1.5,
    "Label": lambda name: f"<{name}>",
}


def rendered(text, data=INSPECT):
    return Template(text).render(data)


def refusal(text, data=INSPECT):
    with pytest.raises(ConfigError) as error:
        rendered(text, data)
    return str(error.value).removeprefix(f"--format {text!r}")


@pytest.mark.parametrize(
    ("text", "output"),
    [
        # docker inspect
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", "172.17.0.2 172.18.0.3 "),
        (
            "{{range $p, $conf := .NetworkSettings.Ports}} {{$p}} -> "
            "{{if $conf}}{{(index $conf 0).HostPort}}{{end}}{{end}}",
            " 443/tcp ->  80/tcp -> 8080",
        ),
        ('{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "8080"),
        ("{{json .Config.Labels}}", '{"b":"2","a":"1"}'),
        ("{{.State.Pid}}", "4242"),
        # docker's page on formatting
        ('{{join .Config.Cmd " , "}}', "nginx , -g , daemon off;"),
        ("{{json .Mounts}}", '[{"Source":"/a","Destination":"/b"},{"Source":"/c","Destination":"/d"}]'),
        ("{{lower .Name}}{{upper .Name}}{{title .Name}}", "webWEBWeb"),
        ('{{split .Config.Image "i"}}', "[ng nx]"),
        ("{{range .Mounts}}{{println .Source}}{{end}}", "/a\n/c\n"),
        ("{{pad .Name 1 2}}|", " web  |"),
        ("{{truncate .Name 2}}{{truncate .Name 9}}", "weweb"),
        ('{{.Label "com.example"}}', "<com.example>"),
        ('{{"com.example" | .Label}}', "<com.example>"),
        # Go's own
        ("plain", "plain"),
        ("", ""),
        ("{{.Name}}: {{.State.Running}} {{.Load}}", "web: true 1.5"),
        ("{{.State.Health}}", "<no value>"),
        ("{{.Config.Cmd}} {{.Config.Labels}}", "[nginx -g daemon off;] map[a:1 b:2]"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ('{{if .State.Health}}a{{else if eq .Name "web"}}b{{else}}c{{end}}', "b"),
        ("{{if .State.Health}}a{{else if .State.Health}}b{{else}}c{{end}}", "c"),
        ("{{with .State.Health}}{{.Status}}{{else}}none{{end}}", "none"),
        ("{{with .State}}{{.Pid}} {{$.Name}}{{end}}", "4242 web"),
        ("{{with $x := .State}}{{$x.Pid}}{{end}}", "4242"),
        ("{{range .State.Health}}x{{else}}empty{{end}}", "empty"),
        ("{{range $i, $m := .Mounts}}{{$i}}={{$m.Source}} {{end}}", "0=/a 1=/c "),
        ("{{range $m := .Mounts}}{{$m.Source}}{{end}}", "/a/c"),
        ("{{range $i, $e := .Config.Cmd}}{{if $i}},{{end}}{{$e}}{{end}}", "nginx,-g,daemon off;"),
        ('{{range .Config.Cmd}}{{if eq . "-g"}}{{continue}}{{end}}{{.}};{{end}}', "nginx;daemon off;;"),
        ('{{range .Config.Cmd}}{{if eq . "-g"}}{{break}}{{end}}{{.}}{{end}}', "nginx"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ("{{$n := 1}}{{range .Mounts}}{{$n = 2}}{{end}}{{$n}}", "2"),
        ("{{$n := 1}}{{if true}}{{$n := 2}}{{$n}}{{end}}{{$n}}", "21"),
        ('{{.Name | upper | printf "%s-%s" .Id}}', "0123456789ab-WEB"),
        (
            '{{printf "%q %5d|%-5s|%05.1f %x %t %v%%" .Name 42 .Name 1.5 255 true .Config.Cmd}}',
            '"web"    42|web  |001.5 ff true [nginx -g daemon off;]%',
        ),
        ("{{printf `%.12s` .Id}}", "0123456789ab"),
        ("{{len .Mounts}} {{len .Name}} {{len .State.Health}}", "2 3 0"),
        ('{{index .Config.Cmd 1}} {{index .Config.Labels "a"}}', "-g 1"),
        ('{{index .Config.Labels "zz"}}', "<no value>"),
        ("{{slice .Id 0 3}}{{slice .Id 10}}", "012ab"),
        (
            '{{eq .Name "a" "web"}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 1.5 1}}',
            "true true true true false true",
        ),
        ("{{and .Name .State.Health}} {{or .State.Health .Name}} {{not .Name}}", "<no value> web false"),
        ("{{and .State.Health .State.Health.Log}}", "<no value>"),
        ('{{print 1 2 "a" 3}} {{true}} {{nil | len}}', "1 2a3 true 0"),
        ("a  {{- 1 -}}  b", "a1b"),
        ("a {{/* a comment */}} b {{- /* another */ -}} c", "a  bc"),
        ('{{ .Name }}\n{{ \'a\' }} {{ 0x10 }} {{ -3 }} {{ "\\t\\"\\u00e9" }} {{ `\\n` }}', 'web\n97 16 -3 \t"é \\n'),
        ("{{(.State).Pid}} {{$.State.Pid}} {{$}}", None),
    ],
)
def test_a_template_renders(text, output):
    if output is None:
        assert rendered(text).startswith("4242 4242 map[Config:map[Cmd:[nginx")
    else:
        assert rendered(text) == output


def test_records_are_addressed_by_the_names_of_dockers_api():
    container = Container(
        id="ab",
        name="web",
        created="2024-05-06T07:08:09Z",
        image="sha256:1",
        config=Config(env=["A=1"]),
        host_config=HostConfig(port_bindings={"80/tcp": [PortBinding(host_port="8080")]}),
    )
    assert rendered("{{.Id}} {{.HostConfig.NetworkMode}} {{.State.OOMKilled}} {{.Config.Env}}", container) == (
        "ab default false [A=1]"
    )
    assert rendered("{{json .HostConfig.PortBindings}}", container) == '{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "{{.Nmae}}",
            ": no field 'Nmae' in . (did you mean Name?); it has: Config, Id, Label, Load, Mounts, Name, "
            "NetworkSettings, State",
        ),
        ("{{.State.Pit}}", ": no field 'Pit' in .State (did you mean Pid?); it has: Health, Pid, Running"),
        ("{{.State.Health.Log}}", ": no field 'Log': .State.Health is null"),
        ("{{.Mounts.Source}}", ": no field 'Source': .Mounts is a list, see index and range"),
        ("{{.Name.First}}", ": no field 'First': .Name is a single value"),
        ("{{.Name 1}}", ": .Name 1: an argument for what is not a function"),
        ("{{index .Mounts 5}}", ": index out of range: 5"),
        ("{{index .State.Health 0}}", ": index 0 of nothing"),
        ('{{index .Mounts "a"}}', ': cannot index a list with "a"'),
        ("{{range .Name}}{{end}}", ": range can't iterate over web"),
        ('{{eq .State.Running "true"}}', ': incompatible types for comparison: true and "true"'),
        ("{{join .Name}}", ": join does not take web"),
        ("{{lower 5}}", ": lower does not take 5"),
        ('{{printf "%d" .Name}}', ': printf: %d does not take "web"'),
        ('{{printf "%d"}}', ": printf: %d has no argument"),
        ('{{printf "x" 1}}', ': printf: 1 arguments too many for "x"'),
        ("{{.Name", ", column 8: unclosed action, expected '}}'"),
        ("{{if .Name}}x", ", column 14: {{if}} without {{end}}"),
        ("{{range .Mounts}}x{{else}}y", ", column 28: expected {{end}} of {{range}}"),
        ("x{{end}}", ", column 7: unexpected {{end}}"),
        ("{{}}", ", column 3: missing value"),
        ("{{$x}}", ", column 5: undefined variable $x"),
        ("{{$x = 1}}", ", column 7: undefined variable $x"),
        ("{{break}}", ", column 8: {{break}} outside of range"),
        ('{{template "x"}}', ", column 11: {{template}} is not supported"),
        ("{{(.Name}}", ", column 9: unclosed left parenthesis"),
        ("{{.Name )}}", ", column 8: unexpected ')'"),
        ('{{"\\y"}}', ', column 7: unknown escape \\y in "\\y"'),
        (
            "{{jsn .}}",
            ", column 6: function 'jsn' not defined (did you mean json?); known are: and, eq, ge, gt, index, "
            "join, json, le, len, lower, lt, ne, not, or, pad, print, printf, println, slice, split, title, "
            "truncate, upper",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(text, told):
    assert refusal(text) == told


def test_the_flag_of_the_template_is_named():
    with pytest.raises(ConfigError) as error:
        Template("{{", flag="--log-opt tag")
    assert str(error.value) == "--log-opt tag '{{', column 3: missing value"


def test_a_template_is_parsed_once_and_rendered_many_times():
    template = Template("{{$x := .}}{{range .}}{{$x = .}}{{end}}{{$x}};")
    assert [template.render(data) for data in ([1, 2], [3], [])] == ["2;", "3;", "[];"]


def test_functions_can_be_replaced_for_a_rendering():
    assert Template("{{json .Name}}").render(INSPECT, functions={"json": str.upper}) == "WEB"


@given(st.text(alphabet="{}.-$|()\"'`ab=:, /*\n%ifendrangel", max_size=40))
def test_whatever_is_written_the_answer_is_text_or_one_error(text):
    try:
        Template(text).render({"a": {"b": [1, 2]}})
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message.removeprefix(f"--format {text!r}").replace(repr(text), "")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_of_anything_can_be_read_again(value):
    import json

    assert json.loads(Template("{{json .}}").render(value)) == value
