{{/*
`engine: embedded`: the embedded server of the package `lattice-rdzv` in place of etcd. It is one process without a disk and without peers. It serves
etcd's API, and has TLS and one password.
*/}}

{{- define "lattice.embedded" -}}{{- if eq .Values.engine "embedded" -}}true{{- end -}}{{- end -}}

{{/* The container of the embedded server. */}}
{{- define "lattice.embeddedContainer" -}}
- name: server
  image: {{ include "lattice.image" . | quote }}
  imagePullPolicy: {{ .Values.imagePullPolicy }}
  command: ["lattice-rdzv", "serve"]
  args:
    # All addresses, of IPv4 and IPv6.
    - --listen=*:{{ int .Values.clientService.internalPort }}
    - --listen-metrics=*:{{ int .Values.etcd.metricsPort }}
    {{- if .Values.tls.client.enabled }}
    - --cert=/etc/lattice-rdzv/tls/client/tls.crt
    - --key=/etc/lattice-rdzv/tls/client/tls.key
    {{- if .Values.tls.client.requireClientCert }}
    - --client-ca=/etc/lattice-rdzv/tls/client/ca.crt
    {{- end }}
    {{- end }}
    {{- if .Values.auth.enabled }}
    - --user={{ (first .Values.auth.users).name }}
    - --password-file=/etc/lattice-rdzv/auth/{{ (first .Values.auth.users).name }}
    {{- end }}
  env:
    - name: LATTICE_RDZV_LOG
      value: {{ include "lattice.embeddedLogLevel" . }}
    {{- with .Values.etcd.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - name: client
      containerPort: {{ .Values.clientService.internalPort }}
    - name: metrics
      containerPort: {{ .Values.etcd.metricsPort }}
  {{- include "lattice.probes" . | nindent 2 }}
  {{- with .Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- include "lattice.containerSecurityContext" . | nindent 2 }}
  {{- with (include "lattice.embeddedMounts" . | trim) }}
  volumeMounts:
    {{- . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "lattice.embeddedMounts" -}}
{{- if .Values.tls.client.enabled }}
- name: client-tls
  mountPath: /etc/lattice-rdzv/tls/client
  readOnly: true
{{- end }}
{{- if .Values.auth.enabled }}
- name: auth
  mountPath: /etc/lattice-rdzv/auth
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lattice.embeddedVolumes" -}}
{{- if .Values.tls.client.enabled }}
- name: client-tls
  secret:
    secretName: {{ include "lattice.tlsSecret" (dict "root" . "side" "client") }}
    defaultMode: 0440
{{- end }}
{{- if .Values.auth.enabled }}
{{- $user := (first .Values.auth.users).name }}
# The server needs only the password of its one user.
- name: auth
  secret:
    secretName: {{ .Values.auth.existingSecret }}
    defaultMode: 0440
    items:
      - {key: {{ $user | quote }}, path: {{ $user | quote }}}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The server has four of etcd's levels. */}}
{{- define "lattice.embeddedLogLevel" -}}
{{- $names := dict "warn" "warning" "panic" "error" "fatal" "error" -}}
{{- default .Values.etcd.logLevel (get $names .Values.etcd.logLevel) -}}
{{- end -}}

{{/* The image for `helm test`: with the embedded server, its own image is one with the package. */}}
{{- define "lattice.agentImage" -}}
{{- if .Values.agents.image -}}{{- .Values.agents.image -}}
{{- else if include "lattice.embedded" . -}}{{- include "lattice.image" . -}}
{{- end -}}
{{- end -}}

{{/*
Values that mean nothing to the embedded server: for each its path, its default, and why. Every other value than the default is refused.
tests/chart/test_embedded.py compares the defaults with values.yaml.
*/}}
{{- define "lattice.etcdValues" -}}
replicaCount: {default: 1, why: the embedded server is one process and has no peers}
persistence.enabled: {default: false, why: the embedded server keeps everything in memory}
persistence.size: {default: 8Gi, why: the embedded server has no volume}
persistence.storageClass: {default: "", why: the embedded server has no volume}
persistence.accessModes: {default: [ReadWriteOnce], why: the embedded server has no volume}
persistence.annotations: {default: {}, why: the embedded server has no volume}
persistence.labels: {default: {}, why: the embedded server has no volume}
persistence.whenDeleted: {default: Retain, why: the embedded server has no volume}
ephemeral.medium: {default: "", why: the embedded server keeps everything in memory and has no volume}
ephemeral.sizeLimit: {default: "", why: the embedded server has no volume; its limit is 1 GiB of keys and values}
cluster.token: {default: lattice-rdzv, why: each start of the embedded server is a new cluster}
cluster.initialState: {default: new, why: each start of the embedded server is a new cluster}
cluster.allowRecreate: {default: false, why: the embedded server has no members}
etcd.version: {default: "", why: the image contains no etcd}
etcd.enableV2: {default: auto, why: the embedded server has no v2 API}
etcd.autoCompactionMode: {default: periodic, why: the embedded server compacts its history by itself}
etcd.autoCompactionRetention: {default: 1h, why: the embedded server compacts its history by itself}
etcd.quotaBackendBytes: {default: 0, why: the limit of the embedded server is 1 GiB of keys and values}
etcd.maxRequestBytes: {default: 1572864, why: the limit of the embedded server is fixed}
etcd.unsafeNoFsync: {default: auto, why: the embedded server writes nothing to a disk}
etcd.extraArgs: {default: [], why: these are arguments of etcd}
serverService.clientPort.internalPort: {default: 2379, why: "the embedded server listens on one port for clients, which is `clientService.internalPort`"}
serverService.serverPort.externalPort: {default: 2380, why: the embedded server has no peers}
serverService.serverPort.internalPort: {default: 2380, why: the embedded server has no peers}
serverService.serverPort.nodePort: {default: null, why: the embedded server has no peers}
tls.peer.enabled: {default: false, why: the embedded server has no peers}
tls.peer.existingSecret: {default: "", why: the embedded server has no peers}
tls.peer.issuerRef: {default: {}, why: the embedded server has no peers}
tls.peer.certificateDuration: {default: "", why: the embedded server has no peers}
auth.image: {default: "docker.io/library/python:3.13-alpine", why: the embedded server needs no second container for passwords}
auth.port: {default: 2382, why: the embedded server needs no second container for passwords}
auth.loopbackPort: {default: 2383, why: the embedded server needs no second container for passwords}
auth.resources: {default: {}, why: the embedded server needs no second container for passwords}
pdb.enabled: {default: true, why: one pod has no disruption budget}
pdb.maxUnavailable: {default: 1, why: one pod has no disruption budget}
defragmentation.enabled: {default: false, why: the embedded server has no database file}
defragmentation.schedule: {default: "0 4 * * 0", why: the embedded server has no database file}
{{- end -}}

{{/* Each of these values that is not its default, with the reason, as a YAML list of texts. */}}
{{- define "lattice.uselessValues" -}}
{{- $useless := list -}}
{{- range $path, $value := include "lattice.etcdValues" . | fromYaml -}}
{{- $given := $.Values -}}
{{- range $key := splitList "." $path -}}{{- $given = get $given $key -}}{{- end -}}
{{- /* As JSON, because numbers of a values file are floats. `null` takes a value back. */ -}}
{{- if not (has (toJson $given) (list "null" "\"\"" (toJson $value.default))) -}}
{{- $useless = append $useless (printf "`%s` (%s)" $path $value.why) -}}
{{- end -}}
{{- end -}}
{{- toYaml $useless -}}
{{- end -}}

{{/* Only with `engine: embedded`. */}}
{{- define "lattice.embeddedRefusals" -}}
{{- $values := .Values -}}
{{- $useless := include "lattice.uselessValues" . | fromYamlArray -}}
{{- $users := list -}}
{{- $tenants := list -}}
{{- range $values.auth.users -}}
{{- $users = append $users .name -}}
{{- if .tenant -}}{{- $tenants = append $tenants .tenant -}}{{- end -}}
{{- end -}}
{{- $ports := list (int $values.clientService.internalPort) (int $values.etcd.metricsPort) -}}
embedded-image-of-etcd:
  when: {{ regexMatch "(^|/)etcd([:@]|$)" (include "lattice.image" .) }}
  text: >-
    `engine` is `embedded`, which needs an image that contains the package `lattice-rdzv` (`make image` builds one), but the name of `image` is that of an
    etcd. Example: --set image=registry.example.com/lattice-rdzv:{{ .Chart.Version }}. `image` is: `{{ include "lattice.image" . }}`
embedded-values-of-etcd:
  when: {{ gt (len $useless) 0 }}
  text: {{ printf "with `engine: embedded` these values have no effect; remove them, or set `engine` to `etcd`: %s" (join "; " $useless) | quote }}
embedded-several-users:
  when: {{ and $values.auth.enabled (gt (len $users) 1) }}
  text: >-
    the embedded server has one user, but `auth.users` has {{ len $users }}: keep one of them, or set `engine` to `etcd`. The users are:
    `{{ join "`, `" $users }}`
embedded-tenants:
  when: {{ and $values.auth.enabled (gt (len $tenants) 0) }}
  text: >-
    the embedded server has no roles, so its user may read and write the runs of every tenant: remove `tenant` from `auth.users`, or set `engine` to `etcd`.
    In `auth.users` is the tenant: `{{ join "`, `" $tenants }}`
embedded-ports:
  when: {{ ne (len $ports) (len (uniq $ports)) }}
  text: >-
    `clientService.internalPort` and `etcd.metricsPort` must differ. Both are: {{ int $values.etcd.metricsPort }}
{{ include "lattice.sharedRefusals" . }}
{{- end -}}
